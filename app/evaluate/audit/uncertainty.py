"""Uncertainty signs: how well they detect a model's errors and out-of-distribution responses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from app.evaluate.accuracy import Float64Array, pair_wins
from app.scores import Score

COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)


def evaluate_error_detection(pairs: list[tuple[Score, Score]]) -> dict[str, Any]:
    """Return, for each uncertainty sign, the AUROC of detecting wrongly ranked pairs and selective accuracy.

    `pairs` are the scores of (chosen, rejected).
    """
    margins = np.array([chosen.reward - rejected.reward for chosen, rejected in pairs])
    wins = pair_wins(torch.from_numpy(margins))
    spread = np.array([np.hypot(a.uncertainty, b.uncertainty) for a, b in pairs])
    signs = {
        "probability near one half": -np.abs(margins),
        "spread of the heads over the margin": spread / np.maximum(np.abs(margins), 1e-9),
        "spread of the heads": spread,
        "distance": np.array([max(a.distance, b.distance) for a, b in pairs]),
    }
    return {name: _evaluate_sign(sign, wins) for name, sign in signs.items()}


def evaluate_out_of_distribution_detection(
    ordinary: list[Score], out_of_distribution: Mapping[str, list[Score]]
) -> dict[str, float]:
    """Return the AUROC at which the distance separates each kind, and all kinds, from ordinary responses."""
    ordinary_distances = np.array([score.distance for score in ordinary])
    distances = {
        kind: np.array([score.distance for score in scores]) for kind, scores in out_of_distribution.items()
    }
    distances["all kinds"] = np.concatenate(list(distances.values()))
    return {kind: _auroc(values, ordinary_distances) for kind, values in distances.items()}


def _evaluate_sign(sign: Float64Array, wins: Float64Array) -> dict[str, Any]:
    """Return the AUROC of error detection, and the accuracy on the given shares of most certain pairs."""
    errors = wins < 0.5
    order = np.argsort(sign, kind="stable")
    accuracies = {str(c): float(wins[order[: max(int(c * len(order)), 1)]].mean()) for c in COVERAGES}
    has_both = errors.any() and not errors.all()
    auroc = float(roc_auc_score(errors, sign)) if has_both else None
    return {"auroc": auroc, "accuracy_at_coverage": accuracies}


def _auroc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    labels = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    return float(roc_auc_score(labels, np.concatenate([positives, negatives])))
