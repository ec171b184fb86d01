"""Contrasts: what the explanations of the margins between two responses look like.

The size of a contribution is its absolute value. A feature's sign says whether preferred responses fire it
more (+1) or less (-1); its effect contradicts that if the reward changes the other way with its projection.
Features with sign 0 have no sign to contradict.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.reward.reward_model import RewardModel
from app.scores import Score

MIN_MARGIN = 1.0
"""Minimum absolute margin of the pairs that are measured, in standard deviations of training rewards."""
LARGEST = 10
MOST_USED = 64

ScorePair = tuple[Score, Score]


def evaluate_contrasts(model: RewardModel, pairs: list[ScorePair]) -> dict[str, Any]:
    """Return measurements of the contributions to large margins; `pairs` are scores of (chosen, rejected).

    Without a pair to measure, only the number of pairs is returned.
    """
    measured = [pair for pair in pairs if abs(pair[0].reward - pair[1].reward) >= MIN_MARGIN]
    if not measured:
        return {"n": 0}
    contributions, differences = compute_margin_contributions(model, measured)
    signs = torch.tensor([feature.sign for feature in model.features])
    sizes = contributions.abs()
    size_by_feature = sizes.sum(0) / sizes.sum()
    return {
        "n": len(measured),
        "features_for_half": _median(_count_for_half(sizes)),
        "cancellation": _median(sizes.sum(1) / contributions.sum(1).abs().clamp(min=1e-12)),
        "most_used_share": float(size_by_feature.sort(descending=True).values[:MOST_USED].sum()),
        "unsigned_share": float(size_by_feature[signs == 0].sum()),
        "contradictions": _compute_contradictions(contributions, differences, signs),
        "concepts": _measure_concepts(model, contributions),
    }


def compute_margin_contributions(model: RewardModel, pairs: list[ScorePair]) -> tuple[Tensor, Tensor]:
    """Return each direction's contributions to the margins, and differences of its standardised projections.

    Both are (N, K). The projections are of the whole responses, also if the model reads passages.
    """
    chosen, rejected = (
        model.head.standardise(torch.from_numpy(np.stack([score.projections for score in side])))
        for side in zip(*pairs, strict=True)
    )
    contributions = torch.from_numpy(np.stack([a.contributions - b.contributions for a, b in pairs]))
    return contributions, chosen - rejected


def _measure_concepts(model: RewardModel, contributions: Tensor) -> dict[str, float]:
    """Return how much concepts and names explain of contributions to margins (N, K), all medians.

    `coverage` is the share of the summed sizes that is in concepts, `explained` that of the margin;
    `for_half` is how many concepts carry half of the size of all concepts and of the rest. `largest_named` is
    the mean share of the largest features with a name that passed a blind test.
    """
    sizes, total = contributions.abs(), contributions.sum(1)
    membership = torch.from_numpy(model.concept_membership)
    named = membership.any(1)
    rest = contributions[:, ~named].sum(1, keepdim=True)
    by_concept = torch.cat([contributions @ membership, rest], dim=1).abs()
    tested = torch.tensor([feature.label_items > 0 for feature in model.features])
    largest = sizes.topk(min(LARGEST, sizes.shape[1]), dim=1).indices
    return {
        "coverage": _median(sizes[:, named].sum(1) / sizes.sum(1)),
        "explained": _median(contributions[:, named].sum(1) / total),
        "for_half": _median(_count_for_half(by_concept)),
        "largest_named": float(tested[largest].double().mean()),
    }


def _count_for_half(sizes: Tensor) -> Tensor:
    """Return the smallest number of features that carry half of each row's total size, (N,)."""
    shares = sizes.sort(dim=1, descending=True).values.cumsum(1) / sizes.sum(1, keepdim=True)
    return (shares < 0.5).sum(1) + 1


def _compute_contradictions(contributions: Tensor, differences: Tensor, signs: Tensor) -> float | None:
    """Return the share of features whose effect contradicts their sign; None if none has a sign.

    These are the features with a sign among the largest contributions to each margin.
    """
    largest = contributions.abs().topk(min(LARGEST, contributions.shape[1]), dim=1).indices
    effects = (contributions * differences).gather(1, largest)
    largest_signs = signs[largest]
    has_sign = largest_signs != 0
    contradicts = effects * largest_signs < 0
    return float(contradicts[has_sign].double().mean()) if has_sign.any() else None


def _median(values: Tensor) -> float:
    return float(values.double().quantile(0.5))
