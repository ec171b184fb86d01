"""Agreement of a reward model with human preferences: accuracy, calibration, and dependence on length.

Intervals are bootstrapped over prompt groups, since pairs that share a prompt are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

BOOTSTRAP_RESAMPLES = 2000
CALIBRATION_BINS = 15
FIGURE_BINS = 8
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A mean over pairs, its 95 % bootstrap interval over prompt groups, and the number of pairs.

    Usually the share of pairs that are ranked as people did; for a difference, the mean difference.
    """

    accuracy: float
    ci_low: float
    ci_high: float
    n: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}]"


@dataclass(frozen=True, slots=True)
class Stratum:
    """Values with their prompt groups, and the weight of their mean in a mean over several strata."""

    values: Float64Array
    groups: list[str]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Rewards and response lengths of test pairs, (N, 2) as (chosen, rejected), and their prompt groups."""

    rewards: Tensor
    token_counts: Tensor
    groups: list[str]

    @property
    def margins(self) -> Tensor:
        """Reward of the chosen minus reward of the rejected response, (N,)."""
        return self.rewards[:, 0] - self.rewards[:, 1]


def evaluate_pairs(
    pairs: ScoredPairs, temperature: float, slices: Mapping[str, Sequence[bool]]
) -> dict[str, Any]:
    """Return all measurements of a model on test pairs, ready for JSON; `slices` are masks over the pairs."""
    wins = pair_wins(pairs.margins)
    length_signs = (pairs.token_counts[:, 0] - pairs.token_counts[:, 1]).sign().numpy()
    probabilities, labels = predict_both_orders(pairs.margins, temperature)
    masks = {name: np.array(mask, dtype=bool) for name, mask in slices.items()}
    return {
        **asdict(bootstrap_mean(wins, pairs.groups)),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": float(((probabilities - labels) ** 2).mean()),
        "reliability": reliability_curve(pairs, temperature),
        "by_length": reward_by_length(pairs),
        "length": {
            "spearman": length_correlation(pairs),
            "chosen_longer": _slice_accuracy(wins, pairs.groups, length_signs > 0),
            "chosen_shorter": _slice_accuracy(wins, pairs.groups, length_signs < 0),
        },
        "slices": {name: _slice_accuracy(wins, pairs.groups, mask) for name, mask in masks.items()},
    }


def pair_accuracy(margins: Tensor, groups: list[str]) -> Accuracy:
    """Return the share of pairs with a positive margin; a tie counts half."""
    return bootstrap_mean(pair_wins(margins), groups)


def accuracy_difference(wins: Float64Array, other_wins: Float64Array, groups: list[str]) -> Accuracy:
    """Return the mean of `wins` minus `other_wins` on the same pairs, with a paired interval."""
    return bootstrap_mean(wins - other_wins, groups)


def pair_wins(margins: Tensor) -> Float64Array:
    """Return 1 for each pair ranked as people did, 0 for each other pair, and 0.5 for a tie."""
    wins: Float64Array = ((torch.sign(margins.double()) + 1) / 2).numpy()
    return wins


def bootstrap_mean(values: Float64Array, groups: list[str], seed: int = 0) -> Accuracy:
    """Return the mean and its percentile bootstrap interval; a resample draws whole groups."""
    return bootstrap_strata([Stratum(values, groups)], seed)


def bootstrap_strata(strata: Sequence[Stratum], seed: int = 0) -> Accuracy:
    """Return the weighted mean of the strata's means and its interval; a resample draws from each stratum."""
    generator = np.random.default_rng(seed)
    weights = np.array([stratum.weight for stratum in strata]) / sum(stratum.weight for stratum in strata)
    means = weights @ np.stack([_resample_means(stratum, generator) for stratum in strata])
    low, high = np.percentile(means, [2.5, 97.5])
    mean = weights @ np.array([stratum.values.mean() for stratum in strata])
    return Accuracy(float(mean), float(low), float(high), sum(len(stratum.values) for stratum in strata))


def fit_temperature(margins: Tensor) -> float:
    """Return the T that maximises the likelihood of sigmoid(margin / T), by search on a fine grid."""
    grid = torch.logspace(-2, 2, 801, dtype=torch.float64)
    return float(grid[_mean_losses(margins, grid).argmin()])


def log_loss(margins: Tensor) -> float:
    """Return the log loss at the best temperature: smoother than accuracy and independent of scale."""
    return float(_mean_losses(margins, torch.logspace(-2, 2, 81, dtype=torch.float64)).min())


def predict_both_orders(margins: Tensor, temperature: float) -> tuple[Float64Array, Float64Array]:
    """Return predicted probabilities and 0/1 labels of all pairs in both orders, (2N,) each.

    Because each pair counts in both orders, half of the labels are 1, and a constant prediction is calibrated
    only at one half.
    """
    both = torch.cat([margins, -margins]).double() / temperature
    return torch.sigmoid(both).numpy(), np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])


def expected_calibration_error(probabilities: Float64Array, labels: Float64Array) -> float:
    """Return the expected calibration error over bins with equal numbers of predictions."""
    errors = (
        abs(probabilities[rows].mean() - labels[rows].mean()) * len(rows)
        for rows in _equal_bins(probabilities, CALIBRATION_BINS)
    )
    return float(sum(errors) / len(probabilities))


def reliability_curve(pairs: ScoredPairs, temperature: float) -> list[dict[str, float]]:
    """Return predicted probability ("said") and observed agreement ("came") in bins of equal size.

    The predicted probability is that of the response which the model prefers, so it is at least one half.
    """
    probabilities = torch.sigmoid(pairs.margins.abs().double() / temperature).numpy()
    wins, groups = pair_wins(pairs.margins), np.array(pairs.groups)
    return [
        {"said": float(probabilities[rows].mean()), **_named_mean("came", wins[rows], groups[rows])}
        for rows in _equal_bins(probabilities, FIGURE_BINS)
    ]


def reward_by_length(pairs: ScoredPairs) -> dict[str, list[dict[str, float]]]:
    """Return the mean reward in bins of response length, separately for preferred and rejected responses."""
    tokens, rewards = pairs.token_counts.numpy(), pairs.rewards.double().numpy()
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, FIGURE_BINS + 1)))[1:-1]
    bins, groups = np.digitize(tokens, edges), np.array(pairs.groups)
    curves: dict[str, list[dict[str, float]]] = {"preferred": [], "rejected": []}
    for side, points in enumerate(curves.values()):
        for mask in (bins[:, side] == index for index in range(len(edges) + 1)):
            if mask.any():
                median = float(np.median(tokens[mask, side]))
                points.append({"tokens": median, **_named_mean("reward", rewards[mask, side], groups[mask])})
    return curves


def length_correlation(pairs: ScoredPairs) -> float:
    """Return the Spearman correlation of reward and length among responses to the same prompt."""
    _, group_indices = np.unique(np.repeat(pairs.groups, 2), return_inverse=True)
    columns = [pairs.rewards.flatten().double().numpy(), pairs.token_counts.flatten().double().numpy()]
    x, y = (_centred_ranks(column, group_indices) for column in columns)
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm else 0.0


def _resample_means(stratum: Stratum, generator: np.random.Generator) -> Float64Array:
    """Return the mean of each bootstrap resample, which draws as many groups as there are."""
    _, group_indices = np.unique(stratum.groups, return_inverse=True)
    sums, sizes = np.bincount(group_indices, stratum.values), np.bincount(group_indices)
    draws = generator.integers(len(sums), size=(BOOTSTRAP_RESAMPLES, len(sums)))
    means: Float64Array = sums[draws].sum(1) / sizes[draws].sum(1)
    return means


def _mean_losses(margins: Tensor, temperatures: Tensor) -> Tensor:
    """Return the mean log loss at each temperature."""
    scaled = margins[None] / temperatures[:, None]
    return binary_cross_entropy_with_logits(scaled, torch.ones_like(scaled), reduction="none").mean(1)


def _centred_ranks(values: Float64Array, group_indices: NDArray[np.int64]) -> Float64Array:
    """Return the rank of each value within its group, divided by the group's size and centred."""
    centred = np.zeros(len(values))
    for group in np.unique(group_indices):
        rows = np.flatnonzero(group_indices == group)
        ranks = rankdata(values[rows]) / len(rows)
        centred[rows] = ranks - ranks.mean()
    return centred


def _equal_bins(values: Float64Array, count: int) -> list[NDArray[np.int64]]:
    """Return row indices of `count` bins of sorted values with equal numbers of rows."""
    return [rows for rows in np.array_split(np.argsort(values, kind="stable"), count) if len(rows)]


def _named_mean(name: str, values: Float64Array, groups: NDArray[np.str_]) -> dict[str, float]:
    """Return the mean under a name, with its interval and the number of values."""
    row = asdict(bootstrap_mean(values, list(groups)))
    return {name: row.pop("accuracy"), **row}


def _slice_accuracy(wins: Float64Array, groups: list[str], mask: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return the accuracy on the masked pairs, or None if the mask is empty."""
    if not mask.any():
        return None
    selected = [group for group, inside in zip(groups, mask, strict=True) if inside]
    return asdict(bootstrap_mean(wins[mask], selected))
