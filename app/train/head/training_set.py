"""What heads are trained on: projections of preference pairs, and what is known about the pairs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Projections of the chosen and rejected responses, (N, 2, K), and each pair's prompt group.

    `is_augmented` (N,) marks augmented and control pairs. `uncorrelated_covariance` (K, K) is the covariance
    that the projections would have if the coordinates of the residual were uncorrelated: the part that comes
    from the geometry of the directions and not from the data. `token_counts` (N, 2) are the lengths of the
    responses. `signs` (K,) is +1 or -1 for a direction that may only raise or lower the reward, and 0 for the
    others.
    """

    projections: Tensor
    groups: list[str]
    uncorrelated_covariance: Tensor
    is_augmented: Tensor
    token_counts: Tensor
    signs: Tensor

    @classmethod
    def from_vectors(
        cls,
        vectors: Tensor,
        basis: Tensor,
        groups: list[str],
        *,
        token_counts: Tensor | None = None,
        signs: Tensor | None = None,
    ) -> "TrainingSet":
        """Project (N, 2, D) vectors on the rows of a basis (K, D)."""
        variance = vectors.flatten(0, 1).var(0)
        return cls(
            vectors @ basis.T,
            groups,
            (basis * variance) @ basis.T,
            torch.zeros(len(groups)).bool(),
            torch.ones(len(groups), 2).long() if token_counts is None else token_counts,
            torch.zeros(len(basis)) if signs is None else signs,
        )

    def with_augmented(
        self, projections: Tensor, groups: list[str], token_counts: Tensor | None = None
    ) -> "TrainingSet":
        """Return this set with augmented pairs appended."""
        if token_counts is None:
            token_counts = torch.ones(len(groups), 2).long()
        return replace(
            self,
            projections=torch.cat([self.projections, projections]),
            groups=self.groups + groups,
            is_augmented=torch.cat([self.is_augmented, torch.ones(len(groups)).bool()]),
            token_counts=torch.cat([self.token_counts, token_counts]),
        )

    @property
    def original(self) -> "TrainingSet":
        """The pairs that are not augmented."""
        return self.subset(~self.is_augmented)

    def subset(self, mask: Tensor) -> "TrainingSet":
        """Return the pairs where a boolean mask (N,) is true."""
        return replace(
            self,
            projections=self.projections[mask],
            groups=[group for group, keep in zip(self.groups, mask.tolist(), strict=True) if keep],
            is_augmented=self.is_augmented[mask],
            token_counts=self.token_counts[mask],
        )
