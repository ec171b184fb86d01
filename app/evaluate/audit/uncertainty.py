"""Does a model know what it does not know? Signs of doubt, tried on its errors and on strange responses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from app.evaluate.accuracy import Array, wins
from app.types import Score

STRANGE = 99.0
COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)


def on_errors(pairs: list[tuple[Score, Score]]) -> dict[str, Any]:
    """How well each sign tells pairs the model gets wrong: AUROC, and accuracy on the pairs it keeps."""
    margins = np.array([chosen.reward - rejected.reward for chosen, rejected in pairs])
    right = wins(torch.from_numpy(margins))
    spread = np.array([np.hypot(a.uncertainty, b.uncertainty) for a, b in pairs])
    signs = {
        "probability near one half": -np.abs(margins),
        "spread of the heads over the margin": spread / np.maximum(np.abs(margins), 1e-9),
        "spread of the heads": spread,
        "distance": np.array([max(a.distance, b.distance) for a, b in pairs]),
    }
    return {name: _detects(sign, right) for name, sign in signs.items()}


def on_strangers(home: list[Score], strangers: Mapping[str, list[Score]]) -> dict[str, float]:
    """AUROC of the distance telling each kind of strange response from ordinary ones, and of all kinds."""
    usual = np.array([score.distance for score in home])
    away = {kind: np.array([score.distance for score in found]) for kind, found in strangers.items()}
    away["all kinds"] = np.concatenate(list(away.values()))
    return {kind: _auroc(found, usual) for kind, found in away.items()}


def _detects(sign: Array, right: Array) -> dict[str, Any]:
    wrong = right < 0.5
    order = np.argsort(sign, kind="stable")
    kept = {str(c): float(right[order[: max(int(c * len(order)), 1)]].mean()) for c in COVERAGES}
    both = wrong.any() and not wrong.all()
    return {"auroc": float(roc_auc_score(wrong, sign)) if both else None, "accuracy_at_coverage": kept}


def _auroc(high: NDArray[np.float64], low: NDArray[np.float64]) -> float:
    truth = np.concatenate([np.ones(len(high)), np.zeros(len(low))])
    return float(roc_auc_score(truth, np.concatenate([high, low])))
