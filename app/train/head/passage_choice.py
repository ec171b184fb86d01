"""Chooses by cross-validation whether a model reads passages, and how.

A reading should resist insertions without losing accuracy. So among the readings that cost little accuracy
on held-out pairs, the one is chosen that ranks the most held-out augmented pairs right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluate.accuracy import pair_wins
from app.reward.passages import PassageReading, PassageWeighting
from app.train.head.fitting import HeldOutFold
from app.train.passage_features import PASSAGE_LENGTHS

Wins = NDArray[np.float64]
PASSAGE_FOLDS = 3
MAX_ACCURACY_COST = 0.01
"""Accuracy on held-out pairs that a reading may cost, compared with the mean over the response."""
SHARPNESSES = (1.0, 3.0)
SHARES = (0.5, 0.75, 1.0)
CANDIDATES = tuple(
    PassageReading((length,), weighting, sharpness, share)
    for length, weighting, sharpness, share in product(
        PASSAGE_LENGTHS, (PassageWeighting.WORST, PassageWeighting.BEST), SHARPNESSES, SHARES
    )
)


@dataclass(frozen=True, slots=True)
class ReadingTrial:
    """A reading, and its accuracy on held-out original and augmented pairs."""

    reading: PassageReading | None
    accuracy: float
    augmented_accuracy: float


def choose_passages(
    folds: Sequence[HeldOutFold], progress: Callable[[float], None]
) -> tuple[PassageReading | None, list[ReadingTrial]]:
    """Return the best reading, None for the mean over the whole response, and all that were tried.

    Without augmented pairs nothing shows what passages are good for, and none is tried.
    """
    if not any(fold.augmented for fold in folds):
        return None, []
    wins: dict[PassageReading | None, list[tuple[Wins, Wins]]] = {}
    for done, (pairs, length) in enumerate(product(folds, PASSAGE_LENGTHS)):
        candidates = [reading for reading in CANDIDATES if reading.lengths == (length,)]
        tried = [None, *candidates] if length == PASSAGE_LENGTHS[0] else candidates
        for reading, row in zip(tried, _try_readings(pairs, tried, length), strict=True):
            wins.setdefault(reading, []).append(row)
        progress((done + 1) / (len(folds) * len(PASSAGE_LENGTHS)))
    trials = [
        ReadingTrial(reading, *(float(np.concatenate(side).mean()) for side in zip(*rows, strict=True)))
        for reading, rows in wins.items()
    ]
    return _choose(trials), trials


def _try_readings(
    pairs: HeldOutFold, readings: Sequence[PassageReading | None], length: int
) -> list[tuple[Wins, Wins]]:
    """Return for each reading which original and which augmented pairs it ranks right."""
    scored = [
        pairs.reward_function.score_windows(features, (length,)) if features else None
        for features in (pairs.original, pairs.augmented)
    ]
    results: list[tuple[Wins, Wins]] = []
    for reading in readings:
        rewards = [windows.combine(reading) if windows else torch.zeros(0, 2) for windows in scored]
        original, augmented = (pair_wins(row[:, 0] - row[:, 1]) for row in rewards)
        results.append((original, augmented))
    return results


def _choose(trials: Sequence[ReadingTrial]) -> PassageReading | None:
    mean_reading = trials[0]
    allowed = [trial for trial in trials if trial.accuracy >= mean_reading.accuracy - MAX_ACCURACY_COST]
    return max(allowed, key=lambda trial: (trial.augmented_accuracy, trial.accuracy)).reading
