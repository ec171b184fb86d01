"""The table of a report about length: accuracy by which response is longer, at both settings."""

from collections.abc import Iterator, Mapping
from typing import Any

from app.evaluate.report_comparisons import format_accuracy

Results = Mapping[str, Any]


def render_length_settings(rows: Mapping[str, Results]) -> Iterator[str]:
    """Yield the Markdown of a table; `rows` has the measurements at each setting."""
    yield "| length control | accuracy | chosen is longer | chosen is shorter | reward and length |"
    yield "|---|---|---|---|---|"
    for name, row in rows.items():
        length = row["length"]
        longer, shorter = (
            format_accuracy(part) if part else ""
            for part in (length["chosen_longer"], length["chosen_shorter"])
        )
        yield f"| {name} | {format_accuracy(row)} | {longer} | {shorter} | {length['spearman']:+.2f} |"


def get_length_settings(test: Results, longer_wins: Results | None) -> dict[str, Results]:
    """Return the rows of the table for a test; the last one is the baseline that prefers longer responses."""
    rows: dict[str, Results] = {"off": test}
    if "length_controlled" in test:
        rows["on"] = test["length_controlled"]
    if longer_wins:
        sides = {
            f"chosen_{side}": {"accuracy": share, "ci_low": share, "ci_high": share}
            for side, share in (("longer", 1.0), ("shorter", 0.0))
        }
        rows["longer response wins"] = {**longer_wins, "length": {**sides, "spearman": 1.0}}
    return rows
