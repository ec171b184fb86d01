"""Distribution shift of responses relative to the training data: the population stability index (PSI).

Reward, distance and every projection are counted in ten bins. The bin edges are deciles of responses to
held-out training prompts, so those responses fill the bins evenly.
"""

import numpy as np
from numpy.typing import NDArray

from app.reward.reward_model import RewardModel
from app.scores import Score

BINS = 10
REWARD, DISTANCE, FIRST_PROJECTION = 0, 1, 2
"""Rows of the reward, the distance and the first projection; the other projections follow."""

ALERT_THRESHOLD = 0.25
SUMMARY_NAMES = ("reward", "distance", "projections")
BinCounts = NDArray[np.int64]


def bin_edges(model: RewardModel) -> NDArray[np.float64]:
    """Return the bin edges, one row per quantity, (2 + K, BINS - 1)."""
    tables = model.calibration
    step = (tables.reward_quantiles.shape[1] - 1) // BINS
    rewards = tables.reward_quantiles[0, step:-1:step]
    percentiles = np.linspace(0, 100, BINS + 1)[1:-1]
    edges: NDArray[np.float64] = np.vstack(
        [rewards.cpu().numpy(), percentiles, model.projection_deciles.cpu().numpy()]
    )
    return edges


def assign_bins(score: Score, edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the bin of each quantity of a score, (2 + K,). The reward is used without length correction."""
    uncorrected = score.reward - score.length_correction
    values = np.concatenate([[uncorrected, score.distance], score.projections])
    bins: NDArray[np.intp] = (values[:, None] > edges).sum(1)
    return bins


def count_response(counts: BinCounts, bins: NDArray[np.intp]) -> None:
    """Add a response to the counts in place."""
    counts[np.arange(len(bins)), bins] += 1


def stability_index(counts: BinCounts) -> NDArray[np.float64]:
    """Return the PSI of each row against evenly filled bins.

    Half a response is added to each bin, so that empty bins keep the index finite.
    """
    shares = (counts + 0.5) / (counts.sum(1, keepdims=True) + BINS / 2)
    index: NDArray[np.float64] = ((shares - 1 / BINS) * np.log(shares * BINS)).sum(1)
    return index


def summarize(counts: BinCounts) -> dict[str, float]:
    """Return the PSI of the reward, of the distance, and the mean PSI of the projections."""
    index = stability_index(counts)
    values = index[REWARD], index[DISTANCE], index[FIRST_PROJECTION:].mean()
    return {name: float(value) for name, value in zip(SUMMARY_NAMES, values, strict=True)}
