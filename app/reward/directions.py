"""Residuals → projections on the selected directions, and activations of their latents.

The head uses the projections. The activations say whether the latent that names a direction fired.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

MIN_EIGENVALUE = 1e-3
"""Floor of the eigenvalues of the directions' Gram matrix, so that near-duplicates do not blow up."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """All or some latents of a JumpReLU SAE: encoder and directions (F, D), bias and threshold (F).

    The directions are the decoder vectors; a reward model stores them orthogonalized. If `input_norm` is not
    0, residuals are scaled to that norm before they are encoded. Projections use unscaled residuals.
    """

    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    directions: Tensor
    input_norm: float = 0.0

    def select(self, latents: Tensor) -> "Dictionary":
        """Return only these latents. This is exact: a JumpReLU latent does not depend on the others."""
        return self._map(lambda tensor: tensor[latents])

    def orthogonalize(self) -> "Dictionary":
        """Return the same latents with the nearest orthonormal directions, which span the same space.

        The contribution of a direction is then what the reward loses if it is removed from the residual.
        """
        directions = self.directions.double()
        values, vectors = torch.linalg.eigh(directions @ directions.T)
        inverse_root = vectors / values.clamp(min=MIN_EIGENVALUE).sqrt() @ vectors.T
        return replace(self, directions=(inverse_root @ directions).float())

    def to(self, device: torch.device) -> "Dictionary":
        """Return the same latents on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def project(self, residuals: Tensor) -> Tensor:
        """Project residuals on the directions: (N, D) → (N, F)."""
        return residuals @ self.directions.T

    def encode(self, residuals: Tensor) -> Tensor:
        """Compute latent activations (N, F): zero unless the threshold is exceeded."""
        inputs = residuals * self.input_scale(residuals) if self.input_norm else residuals
        preactivations = torch.addmm(self.bias, inputs, self.encoder.T)
        return preactivations * (preactivations > self.threshold.clamp(min=0))

    def input_scale(self, residuals: Tensor) -> Tensor | float:
        """Return the factor that scales each residual to the norm that the encoder expects."""
        return self.input_norm / residuals.norm(dim=-1, keepdim=True) if self.input_norm else 1.0

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Dictionary":
        tensors = (self.encoder, self.bias, self.threshold, self.directions)
        encoder, bias, threshold, directions = (function(tensor) for tensor in tensors)
        return Dictionary(encoder, bias, threshold, directions, self.input_norm)


class ResponseFeatures(NamedTuple):
    """Pooled projections and activations of a batch of responses, (B, K) each."""

    projections: Tensor
    activations: Tensor
