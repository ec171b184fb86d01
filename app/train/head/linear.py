"""Trains a head that is an ensemble of linear functions: logistic regression on pairwise differences.

The margins of pairs are explained in three steps:

1. Length: a share of what the difference in length explains beside the signed directions. It is not part of
   the head, so it stays out of the reward.
2. Directions without a sign get one set of weights for all members. They are fitted together with weights of
   the directions with a sign, and penalised more.
3. Directions with a sign get weights of that sign that explain what 1 and 2 leave, one set for each bootstrap
   sample of prompt groups.

`app.train.head.linear_tuning` chooses the penalties of steps 2 and 3. The share of step 1 is an option.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from app.reward.head import Head
from app.train.head.common import (
    MIN_SCALE,
    draw_bootstrap_counts,
    pair_weights,
    standardise_rewards,
)
from app.train.head.training_set import TrainingSet
from app.types import HeadKind

MAX_ITERATIONS = 300
"""Steps of the optimizer, which usually stops earlier."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearHeadConfig:
    """Hyperparameters of a linear head. Reports store them under these names.

    `ridge` is the penalty on the weights of directions with a sign, `rest_ridge` on those of the others; 0
    leaves the others out. `length_debiasing` is the share of the effect of length that is kept
    out of the reward; it is not tuned.
    """

    heads: int = 8
    ridge: float = 0.03
    rest_ridge: float = 1.0
    length_debiasing: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Differences:
    """Chosen minus rejected: standardised projections `signed` (N, S) and `rest` (N, R), log2 lengths (N, 1).

    The columns of `signed` are multiplied by their signs. `weights` (N,) are those of the pairs. Augmented
    responses are longer because of what was inserted, so their lengths count as equal.
    """

    signed: Floats
    rest: Floats
    lengths: Floats
    weights: Floats

    @classmethod
    def from_training_set(cls, training_set: TrainingSet, scale: Tensor) -> "Differences":
        """Return the differences of all pairs, standardised by `scale`."""
        x = training_set.projections.double() / scale
        differences, is_signed = x[:, 0] - x[:, 1], training_set.signs != 0
        lengths = training_set.token_counts.clamp(min=1).double().log2()
        lengths *= ~training_set.is_augmented[:, None]
        return cls(
            (differences * training_set.signs)[:, is_signed].numpy(),
            differences[:, ~is_signed].numpy(),
            (lengths[:, :1] - lengths[:, 1:]).numpy(),
            pair_weights(training_set)[:, 0].double().numpy(),
        )

    def subset(self, mask: NDArray[np.bool_]) -> "Differences":
        """Return the pairs where a mask is true."""
        return Differences(self.signed[mask], self.rest[mask], self.lengths[mask], self.weights[mask])


@dataclass(frozen=True, slots=True)
class FittedWeights:
    """Weights of standardised projections: of directions with a sign (E, S), and of the others (R,)."""

    signed: Floats
    rest: Floats

    def compute_parts(self, differences: Differences) -> tuple[Floats, Floats]:
        """Return the contributions of signed directions to the margins (N, S), and those of the rest (N,)."""
        return differences.signed * self.signed.mean(0), differences.rest @ self.rest


def fit_linear(training_set: TrainingSet, config: LinearHeadConfig, progress: Callable[[int], None]) -> Head:
    """Train the ensemble and standardise its rewards; `progress` receives the number of finished heads."""
    original = training_set.original.projections.flatten(0, 1)
    center, scale = original.mean(0), original.std(0).clamp(min=MIN_SCALE)
    differences = Differences.from_training_set(training_set, scale.double())
    counts = draw_bootstrap_counts(training_set.groups, config.heads, config.seed).double().numpy()
    weights = fit_weights(differences, config, counts, progress)
    w1 = torch.zeros(config.heads, 1, len(scale))
    is_signed = training_set.signs != 0
    w1[:, 0, is_signed] = torch.from_numpy(weights.signed).float() * training_set.signs[is_signed]
    w1[:, 0, ~is_signed] = torch.from_numpy(weights.rest).float()
    zeros, ones = torch.zeros(config.heads, 1), torch.ones(config.heads, 1)
    head = Head(center, scale, w1, zeros, ones, torch.zeros(config.heads), HeadKind.LINEAR)
    return standardise_rewards(head, original)


def append_orthogonal(directions: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a basis of directions (K, D) and all orthogonal ones, and its signs; these have sign 0."""
    rest = torch.linalg.svd(directions.double()).Vh[len(directions) :].float()
    return torch.cat([directions, rest]), torch.cat([signs, torch.zeros(len(rest))])


def merge_unsigned(head: Head, basis: Tensor, training_set: TrainingSet) -> tuple[Head, Tensor]:
    """Return a linear head whose unsigned directions are merged into one, and its directions.

    All members weight the unsigned directions alike up to a factor, so the rewards stay the same. Without
    weights they are left out. A head without signed directions is returned as it is.
    """
    is_signed = training_set.signs != 0
    signed, rest = is_signed.nonzero()[:, 0], (~is_signed).nonzero()[:, 0]
    if not len(signed) or not len(rest):
        return head, basis
    kept = replace(head, center=head.center[signed], scale=head.scale[signed], w1=head.w1[..., signed])
    gradient = (head.w1[0, 0] / head.scale)[rest]
    if not gradient.any():
        return kept, basis[signed]
    merged = gradient / gradient.norm()
    projections = training_set.original.projections[..., rest].double() @ merged
    center, scale = head.center[rest] @ merged, projections.std().clamp(min=MIN_SCALE)
    weights = gradient.norm() * scale * torch.ones(len(head.b2), 1, 1, dtype=head.w1.dtype)
    head = replace(
        kept,
        center=torch.cat([kept.center, center[None]]),
        scale=torch.cat([kept.scale, scale[None]]),
        w1=torch.cat([kept.w1, weights], dim=2),
    )
    return head, torch.cat([basis[signed], (merged @ basis[rest].double())[None].to(basis)])


@dataclass(frozen=True, slots=True)
class LogisticLoss:
    """Penalised logistic loss of pairs with margins x @ coefficients + offset, weighted by `shares` (N,).

    `penalties` (K,) are multiplied by half the squared coefficients.
    """

    x: Floats
    shares: Floats
    penalties: Floats
    offset: Floats | float = 0.0

    def __call__(self, coefficients: Floats) -> tuple[float, Floats]:
        """Return the loss and its gradient."""
        margins = self.x @ coefficients + self.offset
        gradient = -(self.shares * expit(-margins)) @ self.x + self.penalties * coefficients
        loss = self.shares @ np.logaddexp(0, -margins) + self.penalties @ coefficients**2 / 2
        return float(loss), gradient


def fit_logistic(
    x: Floats, weights: Floats, penalties: Floats, *, num_positive: int = 0, offset: Floats | float = 0.0
) -> Floats:
    """Return the coefficients (K,) with the lowest loss; the first `num_positive` are not negative."""
    loss = LogisticLoss(x, weights / weights.sum(), penalties, offset)
    bounds = [(0, None)] * num_positive + [(None, None)] * (x.shape[1] - num_positive)
    start, options = np.zeros(x.shape[1]), {"maxiter": MAX_ITERATIONS}
    coefficients: Floats = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    ).x
    return coefficients


def fit_weights(
    differences: Differences,
    config: LinearHeadConfig,
    counts: Floats,
    progress: Callable[[int], None],
) -> FittedWeights:
    """Fit a head for each column of `counts` (N, E), which says how often each pair was drawn."""
    num_signed = differences.signed.shape[1]
    offset = _compute_length_offset(differences, config)
    rest = np.zeros(differences.rest.shape[1])
    if config.rest_ridge and rest.size:
        rest = _fit_rest(differences, config, offset)
        offset = offset + differences.rest @ rest
    signed = np.zeros((counts.shape[1], num_signed))
    penalties = np.full(num_signed, config.ridge)
    for head, count in enumerate(counts.T if num_signed else ()):
        signed[head] = fit_logistic(
            differences.signed, differences.weights * count, penalties, num_positive=num_signed, offset=offset
        )
        progress(head + 1)
    return FittedWeights(signed, rest)


def _fit_rest(differences: Differences, config: LinearHeadConfig, offset: Floats) -> Floats:
    """Return the weights of the directions without a sign, fitted together with the others, (R,)."""
    num_signed, num_rest = differences.signed.shape[1], differences.rest.shape[1]
    penalties = np.repeat([config.ridge, config.rest_ridge], [num_signed, num_rest])
    inputs = np.hstack([differences.signed, differences.rest])
    weights = differences.weights
    return fit_logistic(inputs, weights, penalties, num_positive=num_signed, offset=offset)[num_signed:]


def _compute_length_offset(differences: Differences, config: LinearHeadConfig) -> Floats:
    """Return the share of each pair's margin that is attributed to length and removed, (N,).

    It is what the length explains beside the signed directions, or beside all if none has a sign.
    """
    if not config.length_debiasing:
        return np.zeros(len(differences.lengths))
    num_signed = differences.signed.shape[1]
    inputs = differences.signed if num_signed else differences.rest
    penalties = np.full(inputs.shape[1], config.ridge if num_signed else config.rest_ridge)
    coefficients = fit_logistic(
        np.hstack([inputs, differences.lengths]),
        differences.weights,
        np.append(penalties, 0.0),
        num_positive=num_signed,
    )
    offset: Floats = config.length_debiasing * coefficients[-1] * differences.lengths[:, 0]
    return offset
