"""What makes a head's numbers readable, measured on prompts its heads have not seen.

Each fifth of the prompts is scored by heads trained like the served ones on the other four. From those scores
come the temperature, the percentiles, what distance is usual, and how reward goes with length.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from app.evaluate.accuracy import temperature
from app.model.head import Calibration, Head, interpolate
from app.train.fit import Lesson, Plan, fit, folds, rewards

FOLDS = 5
QUANTILES = 201
DECILES = 9
KNOTS = 6
STIFFNESS = 1.0


def calibrate(
    head: Head, lesson: Lesson, tokens: Tensor, plan: Plan, report: Callable[[float], None]
) -> Calibration:
    """The tables of a head; `tokens` (N, 2) are the lengths of the responses."""
    unseen, distances = _unseen(lesson, plan, report)
    usual = _usual_square(distances, tokens)
    knots, slope = trend(unseen, tokens, lesson.groups)
    evened = unseen - interpolate(tokens.double().log2(), knots, slope)
    known = head.standardise(lesson.projections.flatten(0, 1))
    return Calibration(
        temperature(unseen[:, 0] - unseen[:, 1]),
        torch.stack([_quantiles(unseen), _quantiles(evened)]),
        whitening(known),
        _quantiles(distances / (usual[0] + usual[1] / tokens).sqrt()),
        usual,
        torch.stack([knots, slope]),
        torch.quantile(known, torch.linspace(0, 1, DECILES + 2, dtype=torch.float64)[1:-1], dim=0).T,
    )


def whitening(x: Tensor) -> Tensor:
    """A matrix whose product with x has identity covariance; a tenth of shrinkage keeps it stable."""
    covariance = x.T @ x / len(x)
    ridge = 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype)
    values, vectors = torch.linalg.eigh(0.9 * covariance + ridge)
    found: Tensor = vectors / values.sqrt()
    return found


def _unseen(lesson: Lesson, plan: Plan, report: Callable[[float], None]) -> tuple[Tensor, Tensor]:
    """Rewards and Mahalanobis distances of every response, by heads that did not see its prompt, (N, 2)."""
    fold = folds(lesson.groups, FOLDS, plan.seed)
    unseen, distances = (torch.zeros(lesson.projections.shape[:2], dtype=torch.float64) for _ in range(2))
    for f in range(FOLDS):
        held, rest = lesson.projections[fold == f], lesson.part(fold != f)
        without = fit(rest, plan, lambda _: None)
        unseen[fold == f] = rewards(without, held)
        known, new = (without.standardise(side.flatten(0, 1)) for side in (rest.projections, held))
        distances[fold == f] = (new @ whitening(known)).norm(dim=1).reshape(-1, 2)
        report((f + 1) / FOLDS)
    return unseen, distances


def _usual_square(distances: Tensor, tokens: Tensor) -> Tensor:
    """The squared distance expected of n tokens, as the a and b of a + b / n: short texts scatter more."""
    squares = (distances.flatten() ** 2).numpy()
    parts = np.stack([np.ones(len(squares)), 1 / tokens.flatten().double().numpy()], axis=1)
    weights = np.ones(len(squares))
    for _ in range(3):
        found, _ = nnls(parts * weights[:, None], squares * weights)
        weights = 1 / (parts @ found)
    return torch.from_numpy(found)


def trend(unseen: Tensor, tokens: Tensor, groups: list[str]) -> tuple[Tensor, Tensor]:
    """How reward goes with length among the responses to one prompt: a line through knots, mean zero."""
    lengths = tokens.flatten().double().log2()
    low, high = torch.quantile(lengths, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    if low == high:
        return torch.tensor([low, low + 1]).double(), torch.zeros(2).double()
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
