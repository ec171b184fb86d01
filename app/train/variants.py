"""Other ways to read a preference from the same pairs: each takes an arena and returns test margins.

All heads are trained alike, drills included where there are any, so that a difference is a difference of
what they read.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from app.evaluate import baselines
from app.reward.directions import Dictionary
from app.train.features import PairFeatures
from app.train.head_training import HeadTrainingConfig, TrainingSet, compute_rewards, fit_head
from app.train.selection import select_latents
from app.types import Pair, Pooling


@dataclass(frozen=True, slots=True)
class Drilled:
    """Drills made of training pairs: which pair each is of, its prompt group, and what was read of them."""

    owners: list[int]
    groups: list[str]
    table: PairFeatures

    def of(self, rows: Collection[int]) -> "Drilled":
        """Those made of some of the pairs."""
        kept = [at for at, owner in enumerate(self.owners) if owner in rows]
        return Drilled(
            [self.owners[i] for i in kept], [self.groups[i] for i in kept], self.table.subset(kept)
        )


@dataclass(frozen=True, slots=True)
class Arena:
    """Training and test pairs, what was read of them, and the choices a variant may change."""

    train: list[Pair]
    seen: PairFeatures
    test: list[Pair]
    tested: PairFeatures
    dictionary: Dictionary
    layer: int
    readout: Pooling
    k: int
    plan: HeadTrainingConfig
    drilled: Drilled | None = None

    @property
    def groups(self) -> list[str]:
        """Prompt groups of the training pairs."""
        return [pair.group for pair in self.train]

    @property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Pooled residuals of training and test pairs, (N, 2, D)."""
        return self.seen.pooled_residuals(self.layer, self.readout), self.tested.pooled_residuals(
            self.layer, self.readout
        )


Rival = Callable[[Arena], Tensor]


def selected(arena: Arena) -> Tensor:
    """The method: projections on the directions that selection picks."""
    return projected(arena, _selected(arena))


def random_directions(arena: Arena) -> Tensor:
    """As many directions drawn at random."""
    generator = torch.Generator().manual_seed(arena.plan.seed)
    width = arena.dictionary.directions.shape[1]
    return projected(arena, normalize(torch.randn(2 * arena.k, width, generator=generator), dim=1))


def random_latents(arena: Arena) -> Tensor:
    """As many of the dictionary's directions, drawn at random instead of selected."""
    generator = torch.Generator().manual_seed(arena.plan.seed)
    drawn = torch.randperm(len(arena.dictionary.directions), generator=generator)[: 2 * arena.k]
    return projected(arena, arena.dictionary.directions[drawn].cpu())


def whole_residual(arena: Arena) -> Tensor:
    """The same head over the residual vector itself."""
    return projected(arena, torch.eye(arena.dictionary.directions.shape[1]))


def activations(arena: Arena) -> Tensor:
    """The selected latents' activations instead of the projections."""
    latents = _latents(arena).cpu()
    return _head(
        arena,
        lambda table: table.mean_activations(arena.readout)[..., latents].float(),
        torch.eye(len(latents)),
    )


def linear_probe(arena: Arena) -> Tensor:
    """Logistic regression on the residual vector."""
    vectors, unseen = arena.vectors
    return baselines.linear_probe_margins(vectors, arena.groups, unseen)


def linear_on_selected(arena: Arena) -> Tensor:
    """Logistic regression on the projections that the method's head reads."""
    basis, (vectors, unseen) = _selected(arena), arena.vectors
    return baselines.linear_probe_margins(vectors @ basis.T, arena.groups, unseen @ basis.T)


def words(arena: Arena) -> Tensor:
    """Logistic regression on TF-IDF of the response."""
    return baselines.tfidf_margins(arena.train, arena.test)


def longer(arena: Arena) -> Tensor:
    """The longer response wins."""
    return baselines.length_margins(arena.tested.lengths())


def projected(arena: Arena, basis: Tensor) -> Tensor:
    """A head over projections of the pooled residuals on any basis (K, D)."""
    return _head(arena, lambda table: table.pooled_residuals(arena.layer, arena.readout), basis)


def _head(arena: Arena, vectors: Callable[[PairFeatures], Tensor], basis: Tensor) -> Tensor:
    lesson = TrainingSet.from_vectors(vectors(arena.seen), basis, arena.groups)
    if arena.drilled:
        lesson = lesson.with_augmented(vectors(arena.drilled.table) @ basis.T, arena.drilled.groups)
    found = compute_rewards(fit_head(lesson, arena.plan, lambda _: None), vectors(arena.tested) @ basis.T)
    return found[:, 0] - found[:, 1]


def _selected(arena: Arena) -> Tensor:
    return arena.dictionary.select(_latents(arena)).orthogonalize().directions.cpu()


def _latents(arena: Arena) -> Tensor:
    return select_latents(
        arena.seen.firing_rates(arena.readout), arena.groups, arena.k, seed=arena.plan.seed
    ).latents


BASELINES: dict[str, Rival] = {
    "same head on the whole residual": whole_residual,
    "linear probe on the residual": linear_probe,
    "same head on random directions": random_directions,
    "same head on SAE activations": activations,
    "TF-IDF of the response": words,
    "longer response wins": longer,
}
