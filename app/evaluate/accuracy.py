"""How often a reward model agrees with people, with intervals that respect shared prompts.

And what a single number hides: whether its probabilities mean what they say, and how much of it is length.
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

RESAMPLES = 2000
BINS = 15
STEPS = 8
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pairs ranked as people did, a 95 % interval by bootstrap over prompt groups, and pairs."""

    accuracy: float
    ci_low: float
    ci_high: float
    n: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}]"


@dataclass(frozen=True, slots=True)
class Judged:
    """Test pairs after scoring: rewards and lengths of (chosen, rejected), (N, 2), and prompt groups."""

    rewards: Tensor
    tokens: Tensor
    groups: list[str]

    @property
    def margins(self) -> Tensor:
        """Reward of chosen minus reward of rejected."""
        return self.rewards[:, 0] - self.rewards[:, 1]


def examine(judged: Judged, temperature: float, slices: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Everything measured about a model on test pairs, ready for JSON."""
    right = wins(judged.margins)
    longer = (judged.tokens[:, 0] - judged.tokens[:, 1]).sign().numpy()
    said, true = outcomes(judged.margins, temperature)
    parts = {name: np.array(mask, dtype=bool) for name, mask in slices.items()}
    return {
        **asdict(interval(right, judged.groups)),
        "ece": calibration_error(said, true),
        "brier": float(((said - true) ** 2).mean()),
        "reliability": reliability(judged, temperature),
        "by_length": by_length(judged),
        "length": {
            "spearman": within_prompt(judged),
            "chosen_longer": _part(right, judged.groups, longer > 0),
            "chosen_shorter": _part(right, judged.groups, longer < 0),
        },
        "slices": {name: _part(right, judged.groups, mask) for name, mask in parts.items()},
    }


def accuracy(margins: Tensor, groups: list[str]) -> Accuracy:
    """Pair accuracy; a tie counts half."""
    return interval(wins(margins), groups)


def advantage(ours: Array, theirs: Array, groups: list[str]) -> Accuracy:
    """Wins of ours minus theirs on the same pairs, with a paired interval."""
    return interval(ours - theirs, groups)


def wins(margins: Tensor) -> Array:
    """1 where people agree, 0 where they do not, half for a tie."""
    found: Array = ((torch.sign(margins.double()) + 1) / 2).numpy()
    return found


def interval(values: Array, groups: list[str], seed: int = 0) -> Accuracy:
    """The mean and its percentile bootstrap, drawing whole groups."""
    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, values), np.bincount(place)
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Accuracy(float(values.mean()), float(low), float(high), len(values))


def temperature(margins: Tensor) -> float:
    """The T that makes sigmoid(margin / T) most likely, by search on a fine grid."""
    grid = torch.logspace(-2, 2, 801, dtype=torch.float64)
    return float(grid[_losses(margins, grid).argmin()])


def surprise(margins: Tensor) -> float:
    """Log loss of the margins at their best temperature: smoother than accuracy, blind to scale."""
    return float(_losses(margins, torch.logspace(-2, 2, 81, dtype=torch.float64)).min())


def outcomes(margins: Tensor, temperature: float) -> tuple[Array, Array]:
    """Said probabilities and outcomes; each pair counts in both orders.

    So a model that always says one half scores well only when it knows nothing.
    """
    both = torch.cat([margins, -margins]).double() / temperature
    return torch.sigmoid(both).numpy(), np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])


def calibration_error(said: Array, true: Array) -> float:
    """Expected calibration error in bins of equal mass."""
    return float(
        sum(abs(said[part].mean() - true[part].mean()) * len(part) for part in _bins(said, BINS)) / len(said)
    )


def reliability(judged: Judged, temperature: float) -> list[dict[str, float]]:
    """How sure it is of the response it prefers, and how often people agree, in bins of equal mass."""
    said = torch.sigmoid(judged.margins.abs().double() / temperature).numpy()
    right, groups = wins(judged.margins), np.array(judged.groups)
    return [
        {"said": float(said[part].mean()), **_mean("came", right[part], groups[part])}
        for part in _bins(said, STEPS)
    ]


def by_length(judged: Judged) -> dict[str, list[dict[str, float]]]:
    """Mean reward of responses as long as each other, preferred and rejected apart; bins of equal mass."""
    tokens, rewards = judged.tokens.numpy(), judged.rewards.double().numpy()
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, STEPS + 1)))[1:-1]
    place, groups = np.digitize(tokens, edges), np.array(judged.groups)
    found: dict[str, list[dict[str, float]]] = {"preferred": [], "rejected": []}
    for side, rows in enumerate(found.values()):
        for part in (place[:, side] == at for at in range(len(edges) + 1)):
            if part.any():
                middle = float(np.median(tokens[part, side]))
                rows.append({"tokens": middle, **_mean("reward", rewards[part, side], groups[part])})
    return found


def within_prompt(judged: Judged) -> float:
    """Spearman correlation of reward and length among the responses to one prompt, over all prompts."""
    _, place = np.unique(np.repeat(judged.groups, 2), return_inverse=True)
    columns = [judged.rewards.flatten().double().numpy(), judged.tokens.flatten().double().numpy()]
    x, y = (_centred_ranks(column, place) for column in columns)
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / spread if spread else 0.0


def _losses(margins: Tensor, temperatures: Tensor) -> Tensor:
    scaled = margins[None] / temperatures[:, None]
    return binary_cross_entropy_with_logits(scaled, torch.ones_like(scaled), reduction="none").mean(1)


def _centred_ranks(values: Array, place: NDArray[np.int64]) -> Array:
    """Ranks within each group as a share of its size, less their mean."""
    out = np.zeros(len(values))
    for group in np.unique(place):
        rows = np.flatnonzero(place == group)
        ranks = rankdata(values[rows]) / len(rows)
        out[rows] = ranks - ranks.mean()
    return out


def _bins(said: Array, count: int) -> list[NDArray[np.int64]]:
    return [part for part in np.array_split(np.argsort(said, kind="stable"), count) if len(part)]


def _mean(name: str, values: Array, groups: NDArray[np.str_]) -> dict[str, float]:
    """A mean under a name, its interval and how many it is of."""
    found = asdict(interval(values, list(groups)))
    return {name: found.pop("accuracy"), **found}


def _part(right: Array, groups: list[str], mask: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Accuracy on some of the pairs; None where there are none."""
    if not mask.any():
        return None
    return asdict(interval(right[mask], [group for group, kept in zip(groups, mask, strict=True) if kept]))
