"""How often a reward model agrees with people, with an interval that respects shared prompts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.model.head import Calibration, Head

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pairs ranked as people did, a 95 % interval by bootstrap over prompt groups, and pairs."""

    accuracy: float
    ci_low: float
    ci_high: float
    n: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}], n = {self.n}"


def margins(head: Head, projections: Tensor) -> Tensor:
    """Reward of chosen minus reward of rejected, from (N, 2, K) projections."""
    rewards = head.members(head.standardise(projections.flatten(0, 1))).mean(1).reshape(-1, 2)
    return rewards[:, 0] - rewards[:, 1]


def accuracy(margins: Tensor, groups: list[str], seed: int = 0) -> Accuracy:
    """Pair accuracy; a tie counts half."""
    right = wins(margins)
    low, high = _interval(right, groups, seed)
    return Accuracy(float(right.mean()), low, high, len(right))


def advantage(ours: Tensor, theirs: Tensor, groups: list[str], seed: int = 0) -> Accuracy:
    """Accuracy of ours minus theirs on the same pairs, with a paired interval."""
    difference = wins(ours) - wins(theirs)
    low, high = _interval(difference, groups, seed)
    return Accuracy(float(difference.mean()), low, high, len(difference))


def wins(margins: Tensor) -> NDArray[np.float64]:
    """1 where people agree, 0 where they do not, half for a tie."""
    found: NDArray[np.float64] = ((torch.sign(margins.double()) + 1) / 2).numpy()
    return found


def calibration_error(margins: Tensor, calibration: Calibration, bins: int = 15) -> float:
    """Expected calibration error of P(chosen beats rejected), in bins of equal mass.

    Each pair counts in both orders, so that a model which always says one half scores well only
    when it knows nothing.
    """
    both = torch.cat([margins, -margins]) / calibration.temperature
    said = torch.sigmoid(both).numpy()
    true = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    parts = np.array_split(np.argsort(said, kind="stable"), bins)
    return float(sum(len(p) * abs(said[p].mean() - true[p].mean()) for p in parts if len(p)) / len(said))


def _interval(values: NDArray[np.float64], groups: list[str], seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean, drawing whole groups."""
    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, values), np.bincount(place)
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
