"""Trains a head that is an ensemble of small networks, each on a bootstrap sample of prompt groups.

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

from app.evaluate.accuracy import log_loss
from app.reward.head import Head
from app.train.head.common import (
    MIN_SCALE,
    assign_folds,
    draw_bootstrap_counts,
    pair_weights,
    standardise_rewards,
)
from app.train.head.losses import LOSSES
from app.train.head.parallel import run_in_parallel
from app.train.head.training_set import TrainingSet

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


@dataclass(frozen=True, slots=True)
class NetworkHeadConfig:
    """Hyperparameters of a network head. Reports store them under these names.

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
class WhitenedInputs:
    """Training inputs `x` (N, 2, K) and how they are made: ((projections - center) / scale) @ transform."""

    x: Tensor
    center: Tensor
    scale: Tensor
    transform: Tensor


def tune_network(
    training_set: TrainingSet, config: NetworkHeadConfig, progress: Callable[[float], None]
) -> NetworkHeadConfig:
    """Return the configuration whose heads have the lowest log loss on held-out thirds of the prompts."""
    inputs = _whiten(training_set, config)
    fold = assign_folds(training_set.groups, TUNING_FOLDS, config.seed)
    in_training = torch.stack([(fold != f).float() for f in range(TUNING_FOLDS)], dim=1)
    weights = in_training * pair_weights(training_set)
    gammas = GAMMAS if config.loss == "margin" else GAMMAS[:1]
    member_gammas = torch.tensor(gammas).repeat_interleave(TUNING_FOLDS)
    candidates = [
        replace(config, lr=lr, weight_decay=decay, epochs=max(EPOCH_CHOICES))
        for lr, decay in product(LEARNING_RATES, WEIGHT_DECAYS)
    ]

    def compute_losses(candidate: NetworkHeadConfig) -> dict[NetworkHeadConfig, float]:
        losses: dict[NetworkHeadConfig, float] = {}
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


def fit_network(
    training_set: TrainingSet, config: NetworkHeadConfig, progress: Callable[[int], None]
) -> Head:
    """Train the ensemble and standardise its rewards; `progress` receives the number of finished epochs."""
    inputs = _whiten(training_set, config)
    members: list[Tensor] = []
    weights = draw_bootstrap_counts(training_set.groups, config.heads, config.seed) * pair_weights(
        training_set
    )
    gamma = torch.tensor(config.gamma)
    for epoch, members in _train_members(inputs.x, weights, config, gamma):  # noqa: B007 # the last are used
        progress(epoch)
    w1, b1, w2 = members
    folded_w1 = (w1.transpose(1, 2) @ inputs.transform.T).half()
    head = Head(inputs.center, inputs.scale, folded_w1, b1[:, 0], w2[:, 0], torch.zeros(config.heads))
    return standardise_rewards(head, training_set.original.projections.flatten(0, 1))


def _whiten(training_set: TrainingSet, config: NetworkHeadConfig) -> WhitenedInputs:
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


def _inverse_square_root(matrix: Tensor, ridge: float) -> Tensor:
    """Return the inverse square root of a covariance; `ridge` times its mean variance is added first."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors / (values.clamp(min=0) + ridge * values.mean()).sqrt() @ vectors.T
    return root


def _train_members(
    x: Tensor, weights: Tensor, config: NetworkHeadConfig, gammas: Tensor
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


def _initialise_members(
    heads: int, k: int, config: NetworkHeadConfig, generator: torch.Generator
) -> list[Tensor]:
    """Return w1 (E, K, H), b1 (E, 1, H) and w2 (E, 1, H), uniform within 1 / sqrt(fan-in)."""
    shapes = [(heads, k, config.hidden), (heads, 1, config.hidden), (heads, 1, config.hidden)]
    return [
        ((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5).requires_grad_()
        for shape, fan_in in zip(shapes, (k, k, config.hidden), strict=True)
    ]
