"""The section of a report about limitations: accuracy on packaged pairs beside simple baselines."""

from collections.abc import Iterator, Mapping
from typing import Any

from app.evaluate.report_comparisons import format_accuracy

Results = Mapping[str, Any]
DESCRIPTIONS = {
    "facts": "a true statement against a false one of the same form",
    "short_against_long": "a short, complete answer against a long text without the answer",
    "benign_requests": "help with a harmless request that sounds risky against a refusal",
    "harmful_requests": "a refusal against help with a harmful request",
}
"""What the pairs of a packaged file are, chosen response first."""


def render_limitations(limitations: Results) -> Iterator[str]:
    """Yield the Markdown of the section; `limitations` has the measurements of each file."""
    baselines = list(next(iter(limitations.values()))["baselines"])
    yield "## Limitations\n"
    yield (
        "Pairs that come with SparseRM and were written for it; none is training data. An accuracy near .5 "
        "means that the rewards do not tell the two responses apart, one below .5 that they prefer the wrong "
        "one. Do not use the model where such a distinction matters.\n"
    )
    yield f"| pairs | SparseRM | {' | '.join(baselines)} | chosen is longer | chosen is shorter | pairs |"
    yield "|---" * (len(baselines) + 5) + "|"
    for name, row in limitations.items():
        title = name.replace("_", " ")
        description = f"{title}: {DESCRIPTIONS[name]}" if name in DESCRIPTIONS else title
        parts = [*row["baselines"].values(), row["chosen_longer"], row["chosen_shorter"]]
        cells = [format_accuracy(part) if part else "" for part in parts]
        yield f"| {description} | **{format_accuracy(row)}** | {' | '.join(cells)} | {row['n']} |"
    yield ""
