"""Chooses by cross-validation whether a model reads passages, and how.

A reading should resist insertions without losing accuracy. Cross-validation selects the one with which the
fewest augmented responses overtake the preferred ones, among the readings that cost little accuracy on
held-out pairs, and no more than the share of responses that overtake falls.
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

Wins = NDArray[np.float64]
PASSAGE_FOLDS = 3
MAX_ACCURACY_COST = 0.03
"""Accuracy on held-out pairs that a reading may cost, compared with the mean over the response."""
SHARPNESSES = (1.0, 3.0, 6.0)
SHARES = (0.5, 0.75, 1.0)
CANDIDATES = tuple(
    PassageReading(weighting, sharpness, share)
    for weighting, sharpness, share in product(
        (PassageWeighting.WORST, PassageWeighting.BEST), SHARPNESSES, SHARES
    )
)


@dataclass(frozen=True, slots=True)
class ReadingTrial:
    """A reading, and what it does to held-out pairs.

    `overtaken` is the share of pairs, among those that are ranked right, in which the augmented rejected
    response gets a higher reward than the chosen one.
    """

    reading: PassageReading | None
    accuracy: float
    overtaken: float


def choose_passages(
    folds: Sequence[HeldOutFold], progress: Callable[[float], None]
) -> tuple[PassageReading | None, list[ReadingTrial]]:
    """Return the best reading, None for the mean over the whole response, and all that were tried.

    Without augmented pairs nothing shows what passages are good for, and none is tried.
    """
    if not any(fold.augmented and fold.augmented.pair_indices for fold in folds):
        return None, []
    readings = (None, *CANDIDATES)
    wins: dict[PassageReading | None, list[tuple[Wins, Wins]]] = {reading: [] for reading in readings}
    for done, fold in enumerate(folds, 1):
        for reading, row in zip(readings, _try_readings(fold, readings), strict=True):
            wins[reading].append(row)
        progress(done / len(folds))
    trials = [
        ReadingTrial(reading, *(_mean(np.concatenate(part)) for part in zip(*rows, strict=True)))
        for reading, rows in wins.items()
    ]
    if not any(len(overtaken) for _, overtaken in wins[None]):
        return None, trials
    return _choose(trials), trials


def _mean(wins: Wins) -> float:
    return float(wins.mean()) if len(wins) else 0.0


def _try_readings(fold: HeldOutFold, readings: Sequence[PassageReading | None]) -> list[tuple[Wins, Wins]]:
    """Return for each reading which pairs it ranks right, and which of those are overtaken."""
    if fold.augmented is None:
        return [(np.zeros(0), np.zeros(0)) for _ in readings]
    scored = [
        fold.reward_function.score_spans(features, with_passages=True)
        for features in (fold.original, fold.augmented.features)
    ]
    position = {row: index for index, row in enumerate(fold.rows.tolist())}
    origin = torch.tensor([position[row] for row in fold.augmented.pair_indices], dtype=torch.long)
    is_augmented = ~torch.tensor(fold.augmented.is_control, dtype=torch.bool)
    results: list[tuple[Wins, Wins]] = []
    for reading in readings:
        original, augmented = (spans.combine(reading) for spans in scored)
        is_right = original[:, 0] > original[:, 1]
        overtaking = augmented[is_augmented & is_right[origin]]
        overtaken = (overtaking[:, 1] > overtaking[:, 0]).double().numpy()
        results.append((pair_wins(original[:, 0] - original[:, 1]), overtaken))
    return results


def _choose(trials: Sequence[ReadingTrial]) -> PassageReading | None:
    whole, *others = trials
    allowed = [whole]
    for trial in others:
        cost, gain = whole.accuracy - trial.accuracy, whole.overtaken - trial.overtaken
        if cost <= min(MAX_ACCURACY_COST, gain):
            allowed.append(trial)
    return min(allowed, key=lambda trial: (trial.overtaken, -trial.accuracy)).reading
