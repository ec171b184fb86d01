"""Do explanations survive being acted on? Directions are taken out of projections and of the residual itself.

Everything is seen from one response's reward against the baseline: taking a direction out means putting its
projection back to the training mean.
"""

from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from app.reward.bundle import RewardModel
from app.reward.head import Head

STEPS = (0, 1, 2, 5, 10, 20, 50, 100)
DRAWS = 20
TEN = 10
SHOWN = 5
PARALLEL = 0.8


def examine(model: RewardModel, residuals: Tensor, seed: int = 0) -> dict[str, Any]:
    """Figures on explanations of responses whose pooled residuals (B, D) are given."""
    generator = torch.Generator().manual_seed(seed)
    x = model.head.standardise(model.dictionary.project(residuals))
    origin = torch.zeros_like(x[:1])
    shares = model.head.contributions(x, origin)
    reward, baseline = _reward(model.head, x), _reward(model.head, origin)
    side = torch.sign(reward - baseline)[:, None]
    orders = {
        "largest": (shares * side).argsort(dim=1, descending=True),
        "random": torch.rand(x.shape, generator=generator).argsort(dim=1),
        "smallest": (shares * side).argsort(dim=1),
    }
    moved = _without(model.head, x, orders["largest"][:, :TEN]) - reward
    drawn = [
        _without(model.head, x, torch.rand(x.shape, generator=generator).argsort(dim=1)[:, :TEN]) - reward
        for _ in range(DRAWS)
    ]
    ratio = moved.abs() / torch.stack(drawn).abs().mean(0).clamp(min=1e-12)
    return {
        "n": len(x),
        "deletion": {name: _deletion(model.head, x, order, reward, side) for name, order in orders.items()},
        "insertion": {
            name: _insertion(model.head, x, order, baseline, side) for name, order in orders.items()
        },
        "ten_largest_over_random": float(ratio.median()),
        "ten_largest_at_least_3x": float((ratio >= 3).double().mean()),
        "intervention_spearman": _intervened(model, residuals, shares, reward),
        "shuffled_head_spearman": _shuffled(model.head, x, shares, generator),
        "cancellation": float((shares.abs().sum(1) / shares.sum(1).abs().clamp(min=1e-12)).median()),
        "near_parallel_directions": _near_parallel(model.dictionary.directions),
        **_shown(model, shares),
    }


def _reward(head: Head, x: Tensor) -> Tensor:
    return head.members(x).mean(1)


def _without(head: Head, x: Tensor, places: Tensor) -> Tensor:
    """The reward with some directions, a row's own, back at the baseline."""
    return _reward(head, x.scatter(1, places, 0.0))


def _deletion(head: Head, x: Tensor, order: Tensor, reward: Tensor, side: Tensor) -> dict[str, float]:
    """How far the reward falls back to the baseline, in deviations, as directions are taken away."""
    return {
        str(n): float(((reward - _without(head, x, order[:, :n])) * side[:, 0]).mean())
        for n in STEPS
        if n <= x.shape[1]
    }


def _insertion(head: Head, x: Tensor, order: Tensor, baseline: Tensor, side: Tensor) -> dict[str, float]:
    """How far it leaves the baseline as directions are put in."""
    return {
        str(n): float(((_without(head, x, order[:, n:]) - baseline) * side[:, 0]).mean())
        for n in STEPS
        if n <= x.shape[1]
    }


def _intervened(model: RewardModel, residuals: Tensor, shares: Tensor, reward: Tensor) -> float:
    """Median rank correlation of contributions with what is lost when the residual loses a direction."""
    directions = model.dictionary.directions
    lost = torch.zeros_like(shares)
    excess = model.dictionary.project(residuals) - model.head.center
    for k in range(len(directions)):
        changed = residuals - excess[:, k : k + 1].to(residuals) * directions[k]
        x = model.head.standardise(model.dictionary.project(changed))
        lost[:, k] = reward - _reward(model.head, x)
    return _median_spearman(shares, lost)


def _shuffled(head: Head, x: Tensor, shares: Tensor, generator: torch.Generator) -> float:
    """The same with a head whose inputs are mixed up: an explanation of it should say something else."""
    order = torch.randperm(x.shape[1], generator=generator)
    other = Head(head.center, head.scale, head.w1[..., order], head.b1, head.w2, head.b2)
    return _median_spearman(shares, other.contributions(x, torch.zeros_like(x[:1])))


def _median_spearman(left: Tensor, right: Tensor) -> float:
    found = [float(spearmanr(a, b).statistic) for a, b in zip(left, right, strict=True)]
    return float(torch.tensor(found).nanmedian())


def _near_parallel(directions: Tensor) -> int:
    """Pairs of directions closer than a cosine of .8 in size."""
    cosines = torch.nn.functional.normalize(directions, dim=1)
    return int(((cosines @ cosines.T).abs().triu(1) > PARALLEL).sum())


def _shown(model: RewardModel, shares: Tensor) -> dict[str, Any]:
    """Of the features an answer shows by default: how many have names, and how far those can be trusted."""
    places = shares.abs().topk(min(SHOWN, shares.shape[1]), dim=1).indices.flatten().tolist()
    named = [model.features[k] for k in places if model.features[k].label]
    scores = torch.tensor([one.label_score or 0.0 for one in named])
    tracking = [one.tracks for one in named]
    return {
        "shown_named": len(named) / max(len(places), 1),
        "shown_tracking": sum(tracking) / len(named) if named else None,
        "shown_name_score": float(scores.median()) if named else None,
    }
