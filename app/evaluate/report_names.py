"""The section of a report about names: concepts, features, and how they did in blind tests."""

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
        "express it most; the others are of about the same length and do not express it. A name is kept with "
        "a balanced accuracy of at least .75 on at least 20 texts whose lower bound is above .6.\n"
    )
    for kind, rows in (("features", features), ("concepts", concepts)):
        if rows:
            yield f"{_count_kept(rows)} of {len(rows)} names of {kind} are kept.\n"
    yield "| balanced accuracy | features | concepts |"
    yield "|---|---|---|"
    columns = [Counter(_find_bin(row["accuracy"]) for row in rows) for rows in (features, concepts)]
    for low in sorted({low for column in columns for low in column}, reverse=True):
        yield f"| {_describe_bin(low)} | {columns[0][low]} | {columns[1][low]} |"
    yield ""
    yield "| concept | balanced accuracy | kept |"
    yield "|---|---|---|"
    for row in concepts:
        yield f"| {row['name']} | {row['accuracy']:.2f} | {'yes' if row['kept'] else 'no'} |"
    yield ""


def render_muting(muting: Mapping[str, Results]) -> Iterator[str]:
    """Yield how margins change when concepts are muted."""
    correlations = sorted(row["spearman"] for row in muting.values())
    others = max(row["others"] for row in muting.values())
    median = correlations[len(correlations) // 2]
    yield (
        f"\nMuting a concept changes margins as its contribution says: rank correlation at least "
        f"{correlations[0]:.3f}, median {median:.3f} over {len(muting)} concepts. The contribution of "
        f"everything else changes by at most {others:.3f} standard deviations on average.\n"
    )


def _count_kept(rows: list[Results]) -> int:
    return sum(row["kept"] for row in rows)


def _find_bin(accuracy: float) -> float:
    """Return the lower end of the bin of an accuracy: 1, or a multiple of .1."""
    return 1.0 if accuracy >= 1 else int(accuracy * 10 + 1e-9) / 10


def _describe_bin(low: float) -> str:
    return "1" if low == 1 else f"{low:.1f} to {low + 0.1:.1f}"
