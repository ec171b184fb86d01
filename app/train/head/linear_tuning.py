"""Chooses the hyperparameters of a linear head by cross-validation over prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.train.head.common import MIN_SCALE, assign_folds
from app.train.head.linear import Differences, LinearHeadConfig, fit_weights
from app.train.head.parallel import run_in_parallel
from app.train.head.training_set import TrainingSet

TUNING_FOLDS = 4
"""Cross-validation folds over prompt groups."""
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3)
REST_RIDGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
MAX_REST_SHARE = 0.1
"""Largest share of the contributions' total size that directions without a sign may have beside others."""


def tune_linear(
    training_set: TrainingSet, config: LinearHeadConfig, progress: Callable[[float], None]
) -> LinearHeadConfig:
    """Return the configuration whose heads predict preferences best on held-out prompts.

    The ridge of the signed directions comes first, then that of the rest.
    """
    is_signed = training_set.signs != 0
    tuning = Tuning.from_training_set(training_set, config.seed)
    start = replace(config, rest_ridge=0.0)
    if is_signed.any():
        ridges = [replace(start, ridge=ridge) for ridge in RIDGES]
    else:
        ridges = [replace(start, rest_ridge=ridge) for ridge in REST_RIDGES]
    best = _find_lowest_loss(tuning.run(ridges, lambda done: progress(done / 2)))
    if config.rest_ridge and is_signed.any() and not is_signed.all():
        rests = [replace(best.config, rest_ridge=ridge) for ridge in REST_RIDGES]
        trials = tuning.run(rests, lambda done: progress((1 + done) / 2))
        best = _find_lowest_loss([best, *(row for row in trials if row.rest_share <= MAX_REST_SHARE)])
    progress(1.0)
    return best.config


def compute_held_out_loss(training_set: TrainingSet, seed: int) -> float:
    """Return the mean loss of a head with default hyperparameters on prompts that it was not fitted on."""
    config = LinearHeadConfig(rest_ridge=0.0, seed=seed)
    (trial,) = Tuning.from_training_set(training_set, seed).run([config], lambda _: None)
    return trial.loss


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration, and how its heads do on held-out prompts.

    `loss` is of all pairs, `rest_share` of original ones: the share of directions without a sign in the total
    size of the contributions.
    """

    config: LinearHeadConfig
    loss: float
    rest_share: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """Cross-validation of configurations on the same folds."""

    differences: Differences
    folds: NDArray[np.int64]
    is_original: NDArray[np.bool_]

    @classmethod
    def from_training_set(cls, training_set: TrainingSet, seed: int) -> "Tuning":
        """Return the cross-validation on the pairs of a training set; the seed determines the folds."""
        scale = training_set.original.projections.flatten(0, 1).std(0).clamp(min=MIN_SCALE).double()
        return cls(
            Differences.from_training_set(training_set, scale),
            assign_folds(training_set.groups, TUNING_FOLDS, seed).numpy(),
            (~training_set.is_augmented).numpy(),
        )

    def run(self, configs: list[LinearHeadConfig], progress: Callable[[float], None]) -> list[Trial]:
        """Return a trial of every configuration, in order."""
        return run_in_parallel([partial(self._try, config) for config in configs], progress)

    def _try(self, config: LinearHeadConfig) -> Trial:
        margins, sizes, rest = (np.zeros(len(self.folds)) for _ in range(3))
        for fold in range(TUNING_FOLDS):
            held_out = self.folds == fold
            subset = self.differences.subset(~held_out)
            fitted = fit_weights(subset, config, np.ones((len(subset.weights), 1)), lambda _: None)
            signed_part, rest_part = fitted.compute_parts(self.differences.subset(held_out))
            margins[held_out] = signed_part.sum(1) + rest_part
            sizes[held_out], rest[held_out] = np.abs(signed_part).sum(1), np.abs(rest_part)
        size, rest_size = sizes[self.is_original].sum(), rest[self.is_original].sum()
        return Trial(
            config,
            float(np.average(np.logaddexp(0, -margins), weights=self.differences.weights)),
            float(rest_size / max(rest_size + size, 1e-12)),
        )


def _find_lowest_loss(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.loss)
