"""Faithfulness of explanations: whether the reward changes as the contributions predict.

Directions are removed from the projections or from the residual stream itself. Removing a direction means
setting its projection to the training mean, so that only the baseline remains when all are removed.
"""

from dataclasses import replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from app.reward.head import Head
from app.reward.reward_model import RewardModel

DELETION_STEPS = (0, 1, 2, 5, 10, 20, 50, 100)
RANDOM_DRAWS = 20
LARGEST_REMOVED = 10
DEFAULT_TOP_K = 5
NEAR_PARALLEL_COSINE = 0.8


def evaluate_faithfulness(model: RewardModel, residuals: Tensor, seed: int = 0) -> dict[str, Any]:
    """Return measurements of the explanations of responses, given their pooled residuals (B, D)."""
    generator = torch.Generator().manual_seed(seed)
    head, x = model.head, model.head.standardise(model.dictionary.project(residuals))
    origin = torch.zeros_like(x[:1])
    contributions = head.compute_contributions(x, origin)
    rewards, baseline = _compute_rewards(head, x), _compute_rewards(head, origin)
    signs = torch.sign(rewards - baseline)[:, None]
    orders = {
        "largest": (contributions * signs).argsort(dim=1, descending=True),
        "random": _random_orders(x, generator),
        "smallest": (contributions * signs).argsort(dim=1),
    }
    ratios = _compare_with_random_removal(head, x, orders["largest"], rewards, generator)
    return {
        "n": len(x),
        "deletion": {name: _delete(head, x, order, rewards, signs) for name, order in orders.items()},
        "insertion": {name: _insert(head, x, order, baseline, signs) for name, order in orders.items()},
        "ten_largest_over_random": float(ratios.median()),
        "ten_largest_at_least_3x": float((ratios >= 3).double().mean()),
        "intervention_spearman": _correlate_with_intervention(model, residuals, contributions, rewards),
        "shuffled_head_spearman": _correlate_with_shuffled_head(head, x, contributions, generator),
        "cancellation": _compute_cancellation(contributions),
        "near_parallel_directions": _count_near_parallel(model.dictionary.directions),
        **_evaluate_shown_features(model, contributions),
    }


def _compute_rewards(head: Head, x: Tensor) -> Tensor:
    """Return the mean reward over the heads of the ensemble, (B,)."""
    return head.score_members(x).mean(1)


def _remove(head: Head, x: Tensor, indices: Tensor) -> Tensor:
    """Return the rewards after setting some directions of each row, (B, n), to the training mean."""
    return _compute_rewards(head, x.scatter(1, indices, 0.0))


def _random_orders(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random permutation of the directions for each row, (B, K)."""
    return torch.rand(x.shape, generator=generator).argsort(dim=1)


def _compare_with_random_removal(
    head: Head, x: Tensor, largest: Tensor, rewards: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the change by removing the largest contributors over that by removing random ones, (B,)."""
    change = _remove(head, x, largest[:, :LARGEST_REMOVED]) - rewards
    random_changes = [
        _remove(head, x, _random_orders(x, generator)[:, :LARGEST_REMOVED]) - rewards
        for _ in range(RANDOM_DRAWS)
    ]
    return change.abs() / torch.stack(random_changes).abs().mean(0).clamp(min=1e-12)


def _delete(head: Head, x: Tensor, order: Tensor, rewards: Tensor, signs: Tensor) -> dict[str, float]:
    """Return how far rewards move towards the baseline, in standard deviations, as directions are removed."""
    return {
        str(n): float(((rewards - _remove(head, x, order[:, :n])) * signs[:, 0]).mean())
        for n in DELETION_STEPS
        if n <= x.shape[1]
    }


def _insert(head: Head, x: Tensor, order: Tensor, baseline: Tensor, signs: Tensor) -> dict[str, float]:
    """Return how far rewards move away from the baseline as directions are added."""
    return {
        str(n): float(((_remove(head, x, order[:, n:]) - baseline) * signs[:, 0]).mean())
        for n in DELETION_STEPS
        if n <= x.shape[1]
    }


def _correlate_with_intervention(
    model: RewardModel, residuals: Tensor, contributions: Tensor, rewards: Tensor
) -> float:
    """Return the median rank correlation of contributions with the effect of removing each direction.

    The direction is removed from the residual stream, and the whole head is evaluated again.
    """
    directions = model.dictionary.directions
    effects = torch.zeros_like(contributions)
    excess = model.dictionary.project(residuals) - model.head.center
    for k in range(len(directions)):
        changed = residuals - excess[:, k : k + 1].to(residuals) * directions[k]
        x = model.head.standardise(model.dictionary.project(changed))
        effects[:, k] = rewards - _compute_rewards(model.head, x)
    return _median_spearman(contributions, effects)


def _correlate_with_shuffled_head(
    head: Head, x: Tensor, contributions: Tensor, generator: torch.Generator
) -> float:
    """Return the median rank correlation with the contributions of a head whose inputs are shuffled.

    It should be near zero: an explanation has to depend on what the head computes.
    """
    order = torch.randperm(x.shape[1], generator=generator)
    shuffled = replace(head, w1=head.w1[..., order])
    return _median_spearman(contributions, shuffled.compute_contributions(x, torch.zeros_like(x[:1])))


def _median_spearman(left: Tensor, right: Tensor) -> float:
    correlations = [float(spearmanr(a, b).statistic) for a, b in zip(left, right, strict=True)]
    return float(torch.tensor(correlations).nanmedian())


def _compute_cancellation(contributions: Tensor) -> float:
    """Return the median ratio of the sum of absolute contributions to the absolute sum of contributions."""
    sums = contributions.sum(1).abs().clamp(min=1e-12)
    return float((contributions.abs().sum(1) / sums).median())


def _count_near_parallel(directions: Tensor) -> int:
    """Count the pairs of directions whose absolute cosine exceeds NEAR_PARALLEL_COSINE."""
    cosines = torch.nn.functional.normalize(directions, dim=1)
    return int(((cosines @ cosines.T).abs().triu(1) > NEAR_PARALLEL_COSINE).sum())


def _evaluate_shown_features(model: RewardModel, contributions: Tensor) -> dict[str, Any]:
    """Return how many of the features that a score shows by default have a name, and how good it is."""
    count = min(DEFAULT_TOP_K, contributions.shape[1])
    indices = contributions.abs().topk(count, dim=1).indices.flatten().tolist()
    named = [model.features[k] for k in indices if model.features[k].label]
    label_scores = torch.tensor([feature.label_score or 0.0 for feature in named])
    predictive = [feature.projection_predicts_firing for feature in named]
    return {
        "shown_named": len(named) / max(len(indices), 1),
        "shown_tracking": sum(predictive) / len(named) if named else None,
        "shown_name_score": float(label_scores.median()) if named else None,
    }
