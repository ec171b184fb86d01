"""What makes a head's numbers readable, measured on prompts its heads have not seen.

Each fifth of the prompts is scored by heads trained like the served ones on the other four. From those scores
come the temperature, the percentiles, what distance is usual, and how reward goes with length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from app.evaluate.accuracy import fit_temperature
from app.reward.calibration import Calibration, compute_mahalanobis_distance, interpolate
from app.reward.head import Head
from app.train.head_training import HeadTrainingConfig, TrainingSet, assign_folds, compute_rewards, fit_head
from app.train.parallel import run_in_parallel

CALIBRATION_FOLDS = 5
QUANTILES = 201
DECILES = 9
KNOTS = 6
STIFFNESS = 1.0
SHRINKAGE = 0.1
LEAST_APART = 1e-4


@dataclass(frozen=True, slots=True)
class ResponseLengths:
    """Of each response (N, 2): its tokens, and how many of them the read-out pools."""

    tokens: Tensor
    pooled: Tensor


def calibrate_head(
    head: Head,
    lesson: TrainingSet,
    lengths: ResponseLengths,
    single: Tensor,
    plan: HeadTrainingConfig,
    report: Callable[[float], None],
) -> Calibration:
    """The tables of a head; `single` (T, K) are projections of single response tokens."""
    unseen, distances = _unseen(lesson, lengths, single, plan, report)
    lesson = lesson.original
    knots, slope = fit_length_trend(unseen, lengths.tokens, lesson.groups)
    evened = unseen - interpolate(lengths.tokens.double().log2(), knots, slope)
    known = head.standardise(lesson.projections.flatten(0, 1))
    return Calibration(
        fit_temperature(unseen[:, 0] - unseen[:, 1]),
        torch.stack([_quantiles(unseen), _quantiles(evened)]),
        *fit_axes(known, lengths.pooled, head.standardise(single)),
        _quantiles(distances),
        torch.stack([knots, slope]),
        torch.quantile(known, torch.linspace(0, 1, DECILES + 2, dtype=torch.float64)[1:-1], dim=0).T,
    )


def fit_axes(known: Tensor, read: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
    """Axes on which tokens of a response scatter by 1, and how far responses differ along each.

    A mean of n tokens then varies by the latter plus 1 / n: short responses may stray further.
    """
    total = known.T @ known / len(known)
    short = float((1 / read.double()).mean())
    within = total if short == 1 else (torch.cov(single.T) - total) / (1 - short)
    values, vectors = torch.linalg.eigh(within)
    values = (1 - SHRINKAGE) * values.clamp(min=0) + SHRINKAGE * values.clamp(min=0).mean()
    between = total - short * (vectors * values) @ vectors.T
    between = (1 - SHRINKAGE) * between + SHRINKAGE * between.diagonal().mean() * torch.eye(len(total))
    even = vectors / values.sqrt()
    apart, turned = torch.linalg.eigh(even.T @ between @ even)
    return even @ turned, apart.clamp(min=LEAST_APART)


def _unseen(
    lesson: TrainingSet,
    lengths: ResponseLengths,
    single: Tensor,
    plan: HeadTrainingConfig,
    report: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """Rewards and distances of every honest response, by heads that did not see its prompt, (N, 2)."""
    everywhere = assign_folds(lesson.groups, CALIBRATION_FOLDS, plan.seed)
    honest, fold = lesson.original.projections, everywhere[~lesson.is_augmented]
    unseen, distances = (torch.zeros(honest.shape[:2], dtype=torch.float64) for _ in range(2))
    others = [lesson.subset(everywhere != f) for f in range(CALIBRATION_FOLDS)]
    heads = run_in_parallel([partial(fit_head, part, plan, lambda _: None) for part in others], report)
    for f, without in enumerate(heads):
        held = fold == f
        unseen[held] = compute_rewards(without, honest[held])
        known, new = (without.standardise(honest[rows].flatten(0, 1)) for rows in (~held, held))
        around = fit_axes(known, lengths.pooled[~held], without.standardise(single))
        distances[held] = compute_mahalanobis_distance(new, lengths.pooled[held].flatten(), *around).reshape(
            -1, 2
        )
    return unseen, distances


def fit_length_trend(unseen: Tensor, tokens: Tensor, groups: list[str]) -> tuple[Tensor, Tensor]:
    """How reward goes with length among the responses to one prompt: a line through knots, mean zero."""
    lengths = tokens.flatten().double().log2()
    low, high = torch.quantile(lengths, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    if low == high:
        return torch.tensor([low - 1, low + 1]).double(), torch.zeros(2).double()
    knots = torch.linspace(low, high, KNOTS, dtype=torch.float64)
    bumps = torch.stack([interpolate(lengths, knots, one) for one in torch.eye(KNOTS).double()], dim=1)
    place = torch.from_numpy(np.unique(np.repeat(groups, 2), return_inverse=True)[1])
    x, y = _centred(bumps, place), _centred(unseen.flatten()[:, None], place)
    bends = STIFFNESS * KNOTS * torch.diff(torch.eye(KNOTS).double(), n=2, dim=0)
    ridge = 1e-3 * torch.eye(KNOTS).double()
    values = torch.linalg.solve(x.T @ x + bends.T @ bends + ridge, x.T @ y)[:, 0]
    return knots, values - (bumps @ values).mean()


def _centred(values: Tensor, place: Tensor) -> Tensor:
    """Columns less their mean in each group."""
    sums = torch.zeros(int(place.max()) + 1, values.shape[1], dtype=values.dtype).index_add_(0, place, values)
    return values - (sums / place.bincount()[:, None])[place]


def _quantiles(values: Tensor) -> Tensor:
    return torch.quantile(values.flatten(), torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
