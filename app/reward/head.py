"""The trained part: an ensemble of one-hidden-layer ReLU heads, kept as one batched tensor.

float64 throughout: it costs nothing beside the backbone and makes attributions sum to the reward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Head:
    """E heads K → H → 1 over standardised projections; the reward is their mean."""

    center: Tensor
    scale: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def to(self, device: torch.device) -> "Head":
        """The same heads in float64 on another device."""
        tensors = (self.center, self.scale, self.w1, self.b1, self.w2, self.b2)
        return Head(*(tensor.to(device, torch.float64) for tensor in tensors))

    def standardise(self, projections: Tensor) -> Tensor:
        """Projections as the heads see them: training mean 0, deviation 1; the baseline is the origin."""
        return (projections.double() - self.center) / self.scale

    def members(self, x: Tensor) -> Tensor:
        """The reward of each head: (B, K) standardised → (B, E)."""
        return torch.einsum("beh,eh->be", self._hidden(x).relu(), self.w2) + self.b2

    def contributions(self, x: Tensor, origin: Tensor) -> Tensor:
        """Each direction's exact share of reward(x) − reward(origin), (B, K), averaged over the heads.

        Integrated gradients along the straight path in closed form: a hidden unit's slope is the
        share of the path on which it is active.
        """
        before, after = self._hidden(origin), self._hidden(x)
        moved = after - before
        slope = torch.where(
            moved.abs() > 1e-12, (after.relu() - before.relu()) / moved, (after > 0).to(moved.dtype)
        )
        gradient = torch.einsum("beh,eh,ehk->bk", slope, self.w2, self.w1) / len(self.b2)
        return (x - origin) * gradient

    @property
    def parameters(self) -> int:
        """Trained numbers, all heads counted."""
        return sum(tensor.numel() for tensor in (self.w1, self.b1, self.w2, self.b2))

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.einsum("bk,ehk->beh", x, self.w1) + self.b1


OUTLYING = 99.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes a raw reward readable; every table comes from responses to prompts not trained on.

    `rewards` (2, Q) are quantiles without and with length control; `axes` (K, K) and `apart` (K) say how
    projections usually scatter, `distances` (Q) how far; `length` (2, L) is the trend of reward with log2
    tokens, as knots, from the first hundredth of lengths to the last, and values; `projections` (K, 9) are
    deciles of standardised projections.
    """

    temperature: float
    rewards: Tensor
    axes: Tensor
    apart: Tensor
    distances: Tensor
    length: Tensor
    projections: Tensor

    def probability(self, margin: float) -> float:
        """How likely people prefer the response that is `margin` ahead."""
        return float(torch.sigmoid(torch.tensor(margin / self.temperature, dtype=torch.float64)))

    def percentile(self, rewards: Tensor, controlled: Tensor) -> Tensor:
        """Share of those responses with a lower reward, 0 to 100; `controlled` says which are by length."""
        plain, evened = (_rank(rewards, table) for table in self.rewards)
        return torch.where(controlled, evened, plain)

    def distance(self, x: Tensor, read: Tensor, tokens: Tensor) -> Tensor:
        """How far a mean of so many read tokens strays, as a percentile of those responses' own, 0 to 100.

        A response among the shortest or longest hundredth is strange whatever it says.
        """
        found = _rank(stray(x, read, self.axes, self.apart), self.distances)
        lengths, (least, most) = tokens.double().log2(), (self.length[0, 0], self.length[0, -1])
        return torch.where((lengths <= least) | (lengths > most), found.clamp(min=OUTLYING), found)

    def correction(self, tokens: Tensor) -> Tensor:
        """What length control adds to the reward of a response of so many tokens."""
        return -interpolate(tokens.double().log2(), *self.length)

    def to(self, device: torch.device) -> "Calibration":
        """The same tables on another device."""
        tables = (
            self.rewards, self.axes, self.apart, self.distances, self.length, self.projections,
        )  # fmt: skip
        return Calibration(self.temperature, *(table.to(device, torch.float64) for table in tables))


def stray(x: Tensor, read: Tensor, axes: Tensor, apart: Tensor) -> Tensor:
    """Mahalanobis distance of means of `read` tokens, where tokens scatter by 1 and responses by `apart`."""
    usual = apart + 1 / read.double()[:, None]
    return ((x @ axes) ** 2 / usual).sum(1).sqrt()


def interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """A line through (knots, values), level beyond its ends."""
    upper = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    low, high = knots[upper - 1], knots[upper]
    inside = ((at - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return values[upper - 1] + inside * (values[upper] - values[upper - 1])


def _rank(values: Tensor, quantiles: Tensor) -> Tensor:
    """Interpolated position of each value in a table of evenly spaced quantiles."""
    last = len(quantiles) - 1
    ranks = torch.linspace(0, 100, last + 1, dtype=torch.float64, device=values.device)
    return interpolate(values, quantiles, ranks)
