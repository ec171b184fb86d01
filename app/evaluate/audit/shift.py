"""How far many responses have moved from those a model was made on: the population stability index (PSI).

Reward, distance and every projection are counted in ten bins that held-out training prompts filled evenly.
"""

import numpy as np
from numpy.typing import NDArray

from app.reward.bundle import RewardModel
from app.types import Score

BINS = 10
REWARD, DISTANCE, FIRST = 0, 1, 2
MOVED = 0.25
OVERALL = ("reward", "distance", "projections")
Counts = NDArray[np.int64]


def edges(model: RewardModel) -> NDArray[np.float64]:
    """Deciles that held-out training prompts had, a row a quantity."""
    tables = model.calibration
    step = (tables.rewards.shape[1] - 1) // BINS
    rewards = tables.rewards[0, step:-1:step]
    percentiles = np.linspace(0, 100, BINS + 1)[1:-1]
    found: NDArray[np.float64] = np.vstack([rewards.cpu().numpy(), percentiles, model.deciles.cpu().numpy()])
    return found


def bins(score: Score, between: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which bin each quantity of a response falls in."""
    plain = score.reward - score.length_correction
    values = np.concatenate([[plain, score.distance], score.projections])
    found: NDArray[np.intp] = (values[:, None] > between).sum(1)
    return found


def add(counts: Counts, found: NDArray[np.intp]) -> None:
    """Count a response."""
    counts[np.arange(len(found)), found] += 1


def stability(counts: Counts) -> NDArray[np.float64]:
    """PSI of each row against even bins; half a response in each bin keeps it finite."""
    shares = (counts + 0.5) / (counts.sum(1, keepdims=True) + BINS / 2)
    found: NDArray[np.float64] = ((shares - 1 / BINS) * np.log(shares * BINS)).sum(1)
    return found


def overall(counts: Counts) -> dict[str, float]:
    """PSI of the reward, of the distance, and of the projections on average."""
    apart = stability(counts)
    found = apart[REWARD], apart[DISTANCE], apart[FIRST:].mean()
    return {what: float(value) for what, value in zip(OVERALL, found, strict=True)}
