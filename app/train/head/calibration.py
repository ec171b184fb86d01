"""Fits the calibration tables of a head on responses to prompts that were not trained on.

Each fifth of the prompts is scored by heads that are trained like the served one on the other four fifths.
Those scores give the temperature, the percentiles, the distance quantiles and the length trend.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from app.evaluate.accuracy import fit_temperature
from app.reward.calibration import Calibration, compute_mahalanobis_distance, interpolate
from app.train.head.fitting import HeadFitter
from app.train.reward_function import RewardFunction

CALIBRATION_FOLDS = 5
"""Cross-validation folds over prompt groups; training needs at least as many prompts."""
NUM_QUANTILES = 201
NUM_DECILES = 9
NUM_KNOTS = 6
"""Knots of the piecewise-linear length trend."""
CURVATURE_PENALTY = 1.0
"""Weight of the squared second differences of the length trend, per knot."""
KNOT_RIDGE = 1e-3
"""Ridge of the length trend, so that knots without responses near them stay finite."""
SHRINKAGE = 0.1
"""Share of a covariance's mean variance that replaces the same share of its own values."""
MIN_RESPONSE_VARIANCE = 1e-4


def calibrate_head(
    fitter: HeadFitter,
    fitted: RewardFunction,
    token_residuals: Tensor,
    progress: Callable[[float], None],
) -> Calibration:
    """Return the calibration of a fitted reward function; `token_residuals` (T, D) are of response tokens."""
    features = fitter.original
    tokens, pooled_tokens = features.lengths(), features.pooled_lengths(fitter.pooling)
    rewards, distances = _score_held_out(fitter, token_residuals, progress)
    knots, values = fit_length_trend(rewards, tokens, fitter.training_set.original.groups)
    controlled = rewards - interpolate(tokens.double().log2(), knots, values)
    standardised = fitted.project(features).flatten(0, 1)
    deciles = torch.linspace(0, 1, NUM_DECILES + 2, dtype=torch.float64)[1:-1]
    return Calibration(
        fit_temperature(rewards[:, 0] - rewards[:, 1]),
        torch.stack([_compute_quantiles(rewards), _compute_quantiles(controlled)]),
        *fit_whitening(standardised, pooled_tokens, fitted.project_residuals(token_residuals)),
        _compute_quantiles(distances),
        torch.stack([knots, values]),
        torch.quantile(standardised, deciles, dim=0).T,
    )


def fit_whitening(responses: Tensor, pooled_tokens: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return whitening axes (K, K), and the variance (K) between responses along each of them.

    Along the axes the tokens of a response have variance 1. `responses` (M, K) are means of `pooled_tokens`
    tokens and `tokens` (T, K) single tokens, both standardised. A mean of n tokens varies by the returned
    variance plus 1 / n, so short responses vary more.
    """
    total = responses.T @ responses / len(responses)
    mean_inverse_length = float((1 / pooled_tokens.double()).mean())
    within = total if mean_inverse_length == 1 else (torch.cov(tokens.T) - total) / (1 - mean_inverse_length)
    values, vectors = torch.linalg.eigh(within)
    values = (1 - SHRINKAGE) * values.clamp(min=0) + SHRINKAGE * values.clamp(min=0).mean()
    between = total - mean_inverse_length * (vectors * values) @ vectors.T
    between = (1 - SHRINKAGE) * between + SHRINKAGE * between.diagonal().mean() * torch.eye(len(total))
    whitening = vectors / values.sqrt()
    variance, rotation = torch.linalg.eigh(whitening.T @ between @ whitening)
    return whitening @ rotation, variance.clamp(min=MIN_RESPONSE_VARIANCE)


def _score_held_out(
    fitter: HeadFitter, token_residuals: Tensor, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor]:
    """Return rewards and distances of original responses, (N, 2), by heads not trained on their prompts."""
    pooled_tokens = fitter.original.pooled_lengths(fitter.pooling)
    rewards, distances = (torch.zeros(pooled_tokens.shape, dtype=torch.float64) for _ in range(2))
    for fold in fitter.cross_fit(CALIBRATION_FOLDS, progress):
        fitted, is_trained = fold.reward_function, torch.ones(len(pooled_tokens)).bool()
        is_trained[fold.rows] = False
        trained = fitted.project(fitter.original.subset(is_trained.nonzero()[:, 0].tolist()))
        whitening = fit_whitening(
            trained.flatten(0, 1), pooled_tokens[is_trained], fitted.project_residuals(token_residuals)
        )
        held_out, counts = fitted.project(fold.original).flatten(0, 1), pooled_tokens[fold.rows].flatten()
        rewards[fold.rows] = fitted.compute_rewards(fold.original)
        distances[fold.rows] = compute_mahalanobis_distance(held_out, counts, *whitening).reshape(-1, 2)
    return rewards, distances


def fit_length_trend(rewards: Tensor, tokens: Tensor, groups: list[str]) -> tuple[Tensor, Tensor]:
    """Return knots in log2 tokens and the mean reward at each: the trend within prompt groups, mean zero.

    `rewards` and `tokens` are (N, 2), `groups` the prompt group of each pair.
    """
    lengths = tokens.flatten().double().log2()
    low, high = torch.quantile(lengths, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    if low == high:
        return torch.tensor([low - 1, low + 1]).double(), torch.zeros(2).double()
    knots = torch.linspace(low, high, NUM_KNOTS, dtype=torch.float64)
    unit_values = torch.eye(NUM_KNOTS).double()
    basis = torch.stack([interpolate(lengths, knots, values) for values in unit_values], dim=1)
    group_index = torch.from_numpy(np.unique(np.repeat(groups, 2), return_inverse=True)[1])
    x = _subtract_group_means(basis, group_index)
    y = _subtract_group_means(rewards.flatten()[:, None], group_index)
    curvature = CURVATURE_PENALTY * NUM_KNOTS * torch.diff(unit_values, n=2, dim=0)
    ridge = KNOT_RIDGE * unit_values
    values = torch.linalg.solve(x.T @ x + curvature.T @ curvature + ridge, x.T @ y)[:, 0]
    return knots, values - (basis @ values).mean()


def _subtract_group_means(values: Tensor, group_index: Tensor) -> Tensor:
    """Return the columns of `values` minus their mean in each group."""
    sums = torch.zeros(int(group_index.max()) + 1, values.shape[1], dtype=values.dtype)
    sums.index_add_(0, group_index, values)
    return values - (sums / group_index.bincount()[:, None])[group_index]


def _compute_quantiles(values: Tensor) -> Tensor:
    return torch.quantile(values.flatten(), torch.linspace(0, 1, NUM_QUANTILES, dtype=torch.float64))
