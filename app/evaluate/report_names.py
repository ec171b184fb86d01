"""The section of a report about names: concepts, features, and how they did in blind tests."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Any]


def render_names(named: Results) -> Iterator[str]:
    """Yield the Markdown of the results of blind tests of names."""
    features = [row for row in named["names"] if row["key"].isdecimal()]
    concepts = [row for row in named["names"] if not row["key"].isdecimal()]
    yield "## Names\n"
    yield (
        "Readers who saw only a name judged responses to prompts that it was not written from, half of which "
        "express it most; the others are of about the same length and do not express it. A name passes with "
        f"a balanced accuracy of {named['min_accuracy']} or more on {named['min_items']} texts or more, if "
        f"its lower bound is above {named['min_lower_bound']}. A name that failed may be rewritten and "
        "tested in another round, on other texts; all rounds are counted here.\n"
    )
    for kind, rows in (("features", features), ("concepts", concepts)):
        if rows:
            passed = {row["key"] for row in rows if row["passed"]}
            count = len({row["key"] for row in rows})
            tested = f"{len(rows)} names of {count} {kind} were tested"
            yield f"{tested}; {len(passed)} {kind} have one that passed.\n"
    yield "| balanced accuracy | names of features | names of concepts |"
    yield "|---|---|---|"
    columns = [Counter(_find_bin(row["accuracy"]) for row in rows) for rows in (features, concepts)]
    for low in sorted({low for column in columns for low in column}, reverse=True):
        yield f"| {_describe_bin(low)} | {columns[0][low]} | {columns[1][low]} |"
    yield ""
    if concepts:
        yield "| concept | balanced accuracy | passed |"
        yield "|---|---|---|"
        for row in sorted(concepts, key=lambda row: -row["accuracy"]):
            name = row["name"].replace("|", "\\|")
            yield f"| {name} | {row['accuracy']:.2f} | {'yes' if row['passed'] else 'no'} |"
        yield ""


def render_muting(muting: Mapping[str, Results]) -> Iterator[str]:
    """Yield how margins change when concepts are muted."""
    correlations = [row["spearman"] for row in muting.values()]
    lowest, median = min(correlations), statistics.median(correlations)
    others = max(row["others"] for row in muting.values())
    yield (
        f"\nMuting a concept changes margins between random responses as its contribution says: rank "
        f"correlation at least {lowest:.3f}, median {median:.3f} over {len(muting)} concepts. The "
        f"contribution of everything else changes by at most {others:.3f} standard deviations on average.\n"
    )


def _find_bin(accuracy: float) -> float:
    """Return the lower end of the bin of an accuracy: 1, or a multiple of .1."""
    return 1.0 if accuracy >= 1 else int(accuracy * 10 + 1e-9) / 10


def _describe_bin(low: float) -> str:
    return "1" if low == 1 else f"{low:.1f} to {low + 0.1:.1f}"
