"""Trains the head: an ensemble of small networks, trained together on bootstrap samples of prompt groups.

A thousand pairs are few, so the danger is overfitting. Inputs are therefore partly whitened and dropped at
random, weights are averaged over the last steps, and learning rate, weight decay, margin and number of epochs
are chosen by cross-validation over prompts. Augmented pairs are trained on with a lower weight; they are
excluded from validation and from normalisation. After training, each member is shifted and scaled so that its
rewards on the original training responses have mean 0 and standard deviation 1. A reward is thus the distance
from a typical training response in standard deviations, and rewards of different models can be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product
from operator import or_

import torch
from torch import Tensor

from app.data.pairs import hash_to_unit_interval
from app.evaluate.accuracy import log_loss
from app.reward.head import Head
from app.train.head.losses import LOSSES
from app.train.head.parallel import run_in_parallel

TUNING_FOLDS = 3
"""Cross-validation folds over prompt groups when the hyperparameters are chosen."""
LEARNING_RATES = (3e-4, 1e-3)
WEIGHT_DECAYS = (1.0, 5.0)
GAMMAS = (1.0, 3.0)
EPOCH_CHOICES = (5, 10, 20, 30, 45, 60)
MAX_AVERAGING_DECAY = 0.98
"""Decay of the moving average of the weights once it has warmed up."""
GEOMETRY_RIDGE = 0.1
"""Ridge, in mean variances, when the correlation due to the directions' geometry is removed."""
AUGMENTED_WEIGHT = 0.4
"""Weight of an augmented or control pair in the loss; an original pair has weight 1."""
MIN_SCALE = 1e-6
"""Smallest standard deviation that is divided by, so that a constant projection stays finite."""


@dataclass(frozen=True, slots=True)
class HeadTrainingConfig:
    """Hyperparameters of a head. Reports store them under these names.

    `whitening` is the ridge, in mean variances, of the second whitening: higher whitens less.
    """

    heads: int = 8
    hidden: int = 256
    loss: str = "margin"
    gamma: float = 1.0
    epochs: int = 40
    batch: int = 128
    lr: float = 5e-4
    weight_decay: float = 3.0
    dropout: float = 0.8
    whitening: float = 30.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Projections of the chosen and rejected responses, (N, 2, K), and each pair's prompt group.

    `is_augmented` (N,) marks augmented and control pairs. `uncorrelated_covariance` (K, K) is the covariance
    that the projections would have if the coordinates of the residual were uncorrelated: the part that comes
    from the geometry of the directions and not from the data.
    """

    projections: Tensor
    groups: list[str]
    uncorrelated_covariance: Tensor
    is_augmented: Tensor

    @classmethod
    def from_vectors(cls, vectors: Tensor, basis: Tensor, groups: list[str]) -> "TrainingSet":
        """Project (N, 2, D) vectors on the rows of a basis (K, D)."""
        variance = vectors.flatten(0, 1).var(0)
        return cls(vectors @ basis.T, groups, (basis * variance) @ basis.T, torch.zeros(len(groups)).bool())

    def with_augmented(self, projections: Tensor, groups: list[str]) -> "TrainingSet":
        """Return this set with augmented pairs appended."""
        return replace(
            self,
            projections=torch.cat([self.projections, projections]),
            groups=self.groups + groups,
            is_augmented=torch.cat([self.is_augmented, torch.ones(len(groups)).bool()]),
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
        )


@dataclass(frozen=True, slots=True)
class WhitenedInputs:
    """Training inputs `x` (N, 2, K) and how they are made: ((projections - center) / scale) @ transform."""

    x: Tensor
    center: Tensor
    scale: Tensor
    transform: Tensor


def tune_config(
    training_set: TrainingSet, config: HeadTrainingConfig, progress: Callable[[float], None]
) -> HeadTrainingConfig:
    """Return the configuration whose heads have the lowest log loss on held-out thirds of the prompts."""
    inputs = _whiten(training_set, config)
    fold = assign_folds(training_set.groups, TUNING_FOLDS, config.seed)
    in_training = torch.stack([(fold != f).float() for f in range(TUNING_FOLDS)], dim=1)
    weights = in_training * _pair_weights(training_set)
    gammas = GAMMAS if config.loss == "margin" else GAMMAS[:1]
    member_gammas = torch.tensor(gammas).repeat_interleave(TUNING_FOLDS)
    candidates = [
        replace(config, lr=lr, weight_decay=decay, epochs=max(EPOCH_CHOICES))
        for lr, decay in product(LEARNING_RATES, WEIGHT_DECAYS)
    ]

    def compute_losses(candidate: HeadTrainingConfig) -> dict[HeadTrainingConfig, float]:
        losses: dict[HeadTrainingConfig, float] = {}
        for epoch, members in _train_members(
            inputs.x, weights.repeat(1, len(gammas)), candidate, member_gammas
        ):
            if epoch in EPOCH_CHOICES:
                chosen, rejected = _score_sides(inputs.x, members)
                by_gamma = torch.split(chosen - rejected, TUNING_FOLDS, dim=1)
                for gamma, margins in zip(gammas, by_gamma, strict=True):
                    held_out = margins[torch.arange(len(fold)), fold][~training_set.is_augmented]
                    losses[replace(candidate, gamma=gamma, epochs=epoch)] = log_loss(held_out.double())
        return losses

    tasks = [partial(compute_losses, candidate) for candidate in candidates]
    losses = reduce(or_, run_in_parallel(tasks, progress))
    return min(losses, key=losses.__getitem__)


def fit_head(training_set: TrainingSet, config: HeadTrainingConfig, progress: Callable[[int], None]) -> Head:
    """Train the ensemble and standardise its rewards; `progress` receives the number of finished epochs."""
    inputs = _whiten(training_set, config)
    members: list[Tensor] = []
    weights = _draw_bootstrap_counts(training_set.groups, config) * _pair_weights(training_set)
    gamma = torch.tensor(config.gamma)
    for epoch, members in _train_members(inputs.x, weights, config, gamma):  # noqa: B007 # the last are used
        progress(epoch)
    w1, b1, w2 = members
    folded_w1 = (w1.transpose(1, 2) @ inputs.transform.T).half()
    head = Head(inputs.center, inputs.scale, folded_w1, b1[:, 0], w2[:, 0], torch.zeros(config.heads))
    return _standardise_rewards(head, training_set.original.projections.flatten(0, 1))


def compute_rewards(head: Head, projections: Tensor) -> Tensor:
    """Return the ensemble's rewards of (N, 2, K) projections, (N, 2)."""
    return head.score_members(head.standardise(projections.flatten(0, 1))).mean(1).reshape(-1, 2)


def assign_folds(groups: list[str], count: int, seed: int) -> Tensor:
    """Return a fold for each pair, (N,). A prompt group is in one fold; folds differ by one group at most."""
    order = sorted(set(groups), key=lambda group: hash_to_unit_interval(f"{seed}/fold/{group}"))
    fold = {group: index % count for index, group in enumerate(order)}
    return torch.tensor([fold[group] for group in groups])


def _whiten(training_set: TrainingSet, config: HeadTrainingConfig) -> WhitenedInputs:
    """Standardise projections, remove the correlation due to geometry, then partly that due to the data."""
    original = training_set.original.projections.flatten(0, 1)
    center, scale = original.mean(0), original.std(0).clamp(min=MIN_SCALE)
    original = ((original - center) / scale).double()
    geometry = training_set.uncorrelated_covariance.double() / scale.outer(scale)
    transform = _inverse_square_root(geometry, GEOMETRY_RIDGE)
    decorrelated = original @ transform
    covariance = decorrelated.T @ decorrelated / len(decorrelated)
    transform = transform @ _inverse_square_root(covariance, config.whitening)
    transform = (transform / (original @ transform).std()).float()
    return WhitenedInputs((training_set.projections - center) / scale @ transform, center, scale, transform)


def _pair_weights(training_set: TrainingSet) -> Tensor:
    """Return the weight of each pair in the loss, (N, 1)."""
    return torch.where(training_set.is_augmented, AUGMENTED_WEIGHT, 1.0)[:, None]


def _inverse_square_root(matrix: Tensor, ridge: float) -> Tensor:
    """Return the inverse square root of a covariance; `ridge` times its mean variance is added first."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors / (values.clamp(min=0) + ridge * values.mean()).sqrt() @ vectors.T
    return root


def _train_members(
    x: Tensor, weights: Tensor, config: HeadTrainingConfig, gammas: Tensor
) -> Iterator[tuple[int, list[Tensor]]]:
    """Train one network for each column of `weights` (N, E), each with its own gamma.

    Yields the number of finished epochs and the averaged parameters (w1, b1, w2) after each epoch.
    """
    generator = torch.Generator().manual_seed(config.seed)
    members = _initialise_members(weights.shape[1], x.shape[2], config, generator)
    averaged = [member.detach().clone() for member in members]
    steps = 0
    optimizer = torch.optim.AdamW(members, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    for epoch in range(config.epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), config.batch):
            dropout_mask = torch.rand(len(rows), 1, x.shape[2], generator=generator) >= config.dropout
            sides = _score_sides(x[rows] * dropout_mask / (1 - config.dropout), members)
            loss = (LOSSES[config.loss](*sides, gammas) * weights[rows]).mean(0).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            optimizer.step()
            steps += 1
            decay = min(MAX_AVERAGING_DECAY, (1 + steps) / (10 + steps))
            for average, member in zip(averaged, members, strict=True):
                average.lerp_(member.detach(), 1 - decay)
        yield epoch + 1, averaged


def _score_sides(x: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rewards of chosen and rejected responses under every member, (N, E) each."""
    w1, b1, w2 = members
    hidden = torch.baddbmm(b1, x.flatten(0, 1).expand(len(w1), -1, -1), w1).relu()
    chosen, rejected = (hidden * w2).sum(2).T.reshape(len(x), 2, -1).unbind(1)
    return chosen, rejected


def _draw_bootstrap_counts(groups: list[str], config: HeadTrainingConfig) -> Tensor:
    """Draw prompt groups with replacement for each head; return how often each pair was drawn, (N, E)."""
    generator = torch.Generator().manual_seed(config.seed)
    index = {group: i for i, group in enumerate(sorted(set(groups)))}
    draws = torch.randint(len(index), (config.heads, len(index)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(index)) for draw in draws]).float()
    return counts.T[torch.tensor([index[group] for group in groups])]


def _initialise_members(
    heads: int, k: int, config: HeadTrainingConfig, generator: torch.Generator
) -> list[Tensor]:
    """Return w1 (E, K, H), b1 (E, 1, H) and w2 (E, 1, H), uniform within 1 / sqrt(fan-in)."""
    shapes = [(heads, k, config.hidden), (heads, 1, config.hidden), (heads, 1, config.hidden)]
    return [
        ((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5).requires_grad_()
        for shape, fan_in in zip(shapes, (k, k, config.hidden), strict=True)
    ]


def _standardise_rewards(head: Head, projections: Tensor) -> Head:
    """Return the head with each member's rewards of (M, K) projections at mean 0, standard deviation 1."""
    exact = head.to(torch.device("cpu"))
    rewards = exact.score_members(exact.standardise(projections))
    mean, std = rewards.mean(0), rewards.std(0).clamp(min=MIN_SCALE)
    w2, b2 = exact.w2 / std[:, None], (exact.b2 - mean) / std
    return Head(head.center, head.scale, head.w1, head.b1, w2.float(), b2.float()).to(torch.device("cpu"))
