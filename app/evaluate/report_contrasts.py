"""The part of an audit's section that describes contrasts: explanations of margins."""

from collections.abc import Iterator, Mapping
from typing import Any

from app.evaluate.audit.contrasts import LARGEST, MIN_MARGIN, MOST_USED

Results = Mapping[str, Any]


def render_contrasts(contrasts: Results) -> Iterator[str]:
    """Yield the Markdown of the measurements of contrasts."""
    if not contrasts["n"]:
        yield f"\nNo two responses of a test pair differ in their rewards by {MIN_MARGIN:g} or more.\n"
        return
    yield (
        f"\nIn a comparison, contributions explain the difference of two rewards, the margin. Measured on "
        f"{contrasts['n']} test pairs with a margin of {MIN_MARGIN:g} or more in either direction; the size "
        "of a contribution is its absolute value.\n"
    )
    yield "| contrasts | value |"
    yield "|---|---|"
    yield (
        "| features that carry half of the size of all contributions (median) "
        f"| {contrasts['features_for_half']:g} |"
    )
    yield f"| sum of the sizes over the size of the margin (median) | {contrasts['cancellation']:.1f} |"
    yield (
        f"| share of the size carried by the {MOST_USED} features that carry most over all pairs "
        f"| {contrasts['most_used_share']:.1%} |"
    )
    yield (
        "| share of the size carried by features that belong neither to preferred nor to rejected responses "
        f"| {contrasts['unsigned_share']:.1%} |"
    )
    if contrasts.get("concepts"):
        yield from _render_concepts(contrasts["concepts"])
    if contrasts["contradictions"] is not None:
        yield (
            f"| among the {LARGEST} largest features of each pair, those with a sign: share that acts "
            "against it, so that more of a feature of preferred responses lowers the reward, or more of "
            f"one of rejected responses raises it | {contrasts['contradictions']:.1%} |"
        )


def _render_concepts(concepts: Results) -> Iterator[str]:
    """Yield the rows about concepts and names."""
    yield f"| share of the size that is in named concepts (median) | {concepts['coverage']:.1%} |"
    yield f"| share of the margin that named concepts explain (median) | {concepts['explained']:.1%} |"
    yield (
        "| concepts that carry half of the size of all concepts and of the rest (median) "
        f"| {concepts['for_half']:g} |"
    )
    yield (
        f"| among the {LARGEST} largest features: share with a name that passed a blind test (mean) "
        f"| {concepts['largest_named']:.1%} |"
    )
