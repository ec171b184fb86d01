"""The trained head: an ensemble of linear functions or one-hidden-layer networks, as batched tensors.

All computations are in float64: it costs nothing next to the backbone, and contributions
then sum to the reward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.types import HeadKind

MIN_PREACTIVATION_CHANGE = 1e-12
"""Below this change of a hidden unit's input, its slope is the derivative, not a difference quotient."""


@dataclass(frozen=True, slots=True)
class Head:
    """E members K → H → 1 over standardised projections. The reward is the mean of their outputs.

    A member of a linear head has one hidden unit, without ReLU.
    """

    center: Tensor
    scale: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    kind: HeadKind = HeadKind.NETWORK

    def to(self, device: torch.device) -> "Head":
        """Return the head in float64 on another device."""
        tensors = (self.center, self.scale, self.w1, self.b1, self.w2, self.b2)
        center, scale, w1, b1, w2, b2 = (tensor.to(device, torch.float64) for tensor in tensors)
        return Head(center, scale, w1, b1, w2, b2, self.kind)

    def standardise(self, projections: Tensor) -> Tensor:
        """Scale projections to training mean 0 and standard deviation 1. The baseline is the origin."""
        return (projections.double() - self.center) / self.scale

    def score_members(self, x: Tensor) -> Tensor:
        """Return the reward of each member: standardised projections (B, K) → (B, E)."""
        return torch.einsum("beh,eh->be", self._activate(self._hidden_inputs(x)), self.w2) + self.b2

    def compute_contributions(self, x: Tensor, origin: Tensor) -> Tensor:
        """Return each direction's exact share of reward(x) - reward(origin), (B, K), mean of all members."""
        return (x - origin) * self.compute_path_gradient(x, origin)

    def compute_path_gradient(self, x: Tensor, origin: Tensor) -> Tensor:
        """Return the mean gradient of the reward on the straight path from `origin` to `x`, (B, K).

        Contributions by it are integrated gradients, in closed form: the mean slope of a hidden unit is the
        share of the path on which it is active.
        """
        before, after = self._hidden_inputs(origin), self._hidden_inputs(x)
        change = after - before
        slope = torch.where(
            change.abs() > MIN_PREACTIVATION_CHANGE,
            (self._activate(after) - self._activate(before)) / change,
            (after > 0).to(change.dtype) if self.kind is HeadKind.NETWORK else 1.0,
        )
        return torch.einsum("beh,eh,ehk->bk", slope, self.w2, self.w1) / len(self.b2)

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters of all members."""
        return sum(tensor.numel() for tensor in (self.w1, self.b1, self.w2, self.b2))

    def _hidden_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs of the hidden units before the ReLU, (B, E, H)."""
        return torch.einsum("bk,ehk->beh", x, self.w1) + self.b1

    def _activate(self, inputs: Tensor) -> Tensor:
        return inputs.relu() if self.kind is HeadKind.NETWORK else inputs
