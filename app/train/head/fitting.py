"""Trains heads of either kind, by the type of their configuration, and makes them reward functions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from app.reward.head import Head
from app.reward.passages import PassageReading
from app.train.augmentation.pairs import AugmentedPairs
from app.train.features import PairFeatures
from app.train.head.common import assign_folds
from app.train.head.linear import LinearHeadConfig, fit_linear, merge_unsigned
from app.train.head.linear_tuning import tune_linear
from app.train.head.network import NetworkHeadConfig, fit_network, tune_network
from app.train.head.parallel import run_in_parallel
from app.train.head.training_set import TrainingSet
from app.train.reward_function import RewardFunction
from app.types import Pooling

HeadConfig = NetworkHeadConfig | LinearHeadConfig


def fit_head(training_set: TrainingSet, config: HeadConfig, progress: Callable[[int], None]) -> Head:
    """Train a head; `progress` receives the number of finished epochs or heads."""
    if isinstance(config, LinearHeadConfig):
        return fit_linear(training_set, config, progress)
    return fit_network(training_set, config, progress)


def tune_config(
    training_set: TrainingSet, config: HeadConfig, progress: Callable[[float], None]
) -> HeadConfig:
    """Return the configuration with hyperparameters chosen by cross-validation over prompts."""
    if isinstance(config, LinearHeadConfig):
        return tune_linear(training_set, config, progress)
    return tune_network(training_set, config, progress)


def read_config(plan: Mapping[str, Any]) -> HeadConfig:
    """Return a configuration as a report stores it."""
    return LinearHeadConfig(**plan) if "ridge" in plan else NetworkHeadConfig(**plan)


@dataclass(frozen=True, slots=True)
class HeldOutFold:
    """A reward function, and the original and augmented pairs whose prompts it was not fitted on.

    `rows` are the indices of the original pairs.
    """

    reward_function: RewardFunction
    rows: Tensor
    original: PairFeatures
    augmented: AugmentedPairs | None


@dataclass(frozen=True, slots=True)
class HeadFitter:
    """Fits reward functions on all prompts or on some of them, always in the same way.

    `training_set` has the original pairs, whose features are `original`, and then the augmented ones. Its
    projections are on the rows of `basis`.
    """

    training_set: TrainingSet
    original: PairFeatures
    augmented: AugmentedPairs | None
    basis: Tensor
    layer: int
    pooling: Pooling
    config: HeadConfig
    passages: PassageReading | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps of a fit that progress is reported in."""
        config = self.config
        return max(config.heads if isinstance(config, LinearHeadConfig) else config.epochs, 1)

    def fit(
        self, mask: Tensor | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> RewardFunction:
        """Fit on the pairs where a mask over the training set is true, by default on all."""
        if mask is None:
            mask = torch.ones(len(self.training_set.groups)).bool()
        subset = self.training_set.subset(mask)
        head, directions = fit_head(subset, self.config, progress), self.basis
        if isinstance(self.config, LinearHeadConfig):
            head, directions = merge_unsigned(head, directions, subset)
        fitted = RewardFunction(directions, head, self.layer, self.pooling)
        rows = mask[: len(self.original.response_index)].nonzero()[:, 0]
        return fitted.with_passages(self.passages, self.original.subset(rows.tolist()))

    def cross_fit(self, count: int, progress: Callable[[float], None]) -> Iterator[HeldOutFold]:
        """Yield folds over prompt groups, each with a reward function that is fitted on the others."""
        folds = assign_folds(self.training_set.groups, count, self.config.seed)
        fitted = run_in_parallel([partial(self.fit, folds != fold) for fold in range(count)], progress)
        for fold, reward_function in enumerate(fitted):
            rows = (folds[: len(self.original.response_index)] == fold).nonzero()[:, 0]
            augmented = self.augmented.subset(set(rows.tolist())) if self.augmented else None
            yield HeldOutFold(reward_function, rows, self.original.subset(rows.tolist()), augmented)
