"""Residuals → the two readings of a response: projections p on selected directions, activations f.

p is what the head sees; f says whether the latent a direction was named for fired at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from app.types import EncodedItem, Pooling

LEAST_EIGENVALUE = 1e-3


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A sparse autoencoder's latents, or some of them: JumpReLU encoder columns, and a direction for each.

    The directions are the decoder vectors; a reward model keeps them untangled. Where `length` is not 0,
    residuals are brought to it before they are encoded; projections are of residuals as they are.
    """

    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    directions: Tensor
    length: float = 0.0

    def select(self, latents: Tensor) -> "Dictionary":
        """Only these latents; exact, because a JumpReLU latent does not depend on the others."""
        return self._with(lambda tensor: tensor[latents])

    def untangled(self) -> "Dictionary":
        """The same latents with the orthonormal directions nearest to theirs: the same span, no overlap.

        So what a direction contributes is what the reward loses when it is taken out of the residual.
        """
        directions = self.directions.double()
        values, vectors = torch.linalg.eigh(directions @ directions.T)
        inverse_root = vectors / values.clamp(min=LEAST_EIGENVALUE).sqrt() @ vectors.T
        return replace(self, directions=(inverse_root @ directions).float())

    def to(self, device: torch.device) -> "Dictionary":
        """The same latents on another device."""
        return self._with(lambda tensor: tensor.to(device))

    def project(self, residuals: Tensor) -> Tensor:
        """Alignment of each residual with each direction."""
        return residuals @ self.directions.T

    def activate(self, residuals: Tensor) -> Tensor:
        """Latent activations: zero unless the threshold is passed."""
        brought = residuals * self.factor(residuals) if self.length else residuals
        before = torch.addmm(self.bias, brought, self.encoder.T)
        return before * (before > self.threshold.clamp(min=0))

    def factor(self, residuals: Tensor) -> Tensor | float:
        """What brings each residual to the length the encoder expects."""
        return self.length / residuals.norm(dim=-1, keepdim=True) if self.length else 1.0

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Dictionary":
        parts = (self.encoder, self.bias, self.threshold, self.directions)
        encoder, bias, threshold, directions = (change(part) for part in parts)
        return Dictionary(encoder, bias, threshold, directions, self.length)


class Reading(NamedTuple):
    """What a batch of responses looks like to a reward model; every field is (B, K)."""

    projections: Tensor
    activations: Tensor


def span(readout: Pooling, encoded: EncodedItem) -> tuple[int, int]:
    """The tokens [start, stop) a read-out pools."""
    match readout:
        case Pooling.MEAN:
            return encoded.start, encoded.stop
        case Pooling.LAST:
            return encoded.stop - 1, encoded.stop
        case Pooling.END:
            return encoded.stop, encoded.stop + 1


def steps(readout: Pooling, encoded: EncodedItem) -> tuple[int, int]:
    """The tokens that get credit: the response, and the closing token where that one is read."""
    return encoded.start, encoded.stop + (readout is Pooling.END)


def read(dictionary: Dictionary, residuals: Tensor, lengths: list[int]) -> Reading:
    """Pool the pooled tokens of several responses, given one after the other."""
    return Reading(
        pool(dictionary.project(residuals), lengths), pool(dictionary.activate(residuals), lengths)
    )


def pool(values: Tensor, lengths: list[int]) -> Tensor:
    """Mean over each response's rows."""
    return torch.stack([part.mean(0) for part in torch.split(values, lengths)])


def running(readout: Pooling, projections: Tensor) -> Tensor:
    """What the read-out would have been had the response ended at each of its tokens."""
    if readout is not Pooling.MEAN:
        return projections
    counts = torch.arange(1, len(projections) + 1, device=projections.device)[:, None]
    return projections.cumsum(0) / counts
