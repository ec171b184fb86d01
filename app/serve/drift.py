"""Whether what is scored still looks like what the models were made on, by caller.

Memory is constant: counts in ten bins of each quantity, in two half-windows a caller, for so many callers and
no more; whoever comes later shares one window. The measure is the population stability index (PSI).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.model.bundle import RewardModel
from app.serve.metrics import Metrics
from app.types import Score

HALF_WINDOW, LEAST, EVERY = 1000, 200, 50
BINS = 10
MOST_CALLERS = 32
REWARD, DISTANCE, FIRST = 0, 1, 2
SHOWN = 10
ANYONE, OTHERS = "default", "other"
Counts = NDArray[np.int64]


class Window:
    """Counts of the last one to two half-windows: rows are quantities, columns bins."""

    def __init__(self, rows: int) -> None:
        self._old = np.zeros((rows, BINS), dtype=np.int64)
        self._new = np.zeros_like(self._old)
        self.seen = 0

    def add(self, bins: NDArray[np.intp]) -> None:
        """Take one response in; the older half goes when the newer is full."""
        if self.seen and self.seen % HALF_WINDOW == 0:
            self._old, self._new = self._new, np.zeros_like(self._new)
        self._new[np.arange(len(bins)), bins] += 1
        self.seen += 1

    @property
    def counts(self) -> Counts:
        """What is in the window."""
        found: Counts = self._old + self._new
        return found


class Drift:
    """The windows of one server: a model and a caller each."""

    def __init__(self, models: Mapping[str, RewardModel], metrics: Metrics) -> None:
        self._edges = {name: _edges(model) for name, model in models.items()}
        self._models = models
        self._metrics = metrics
        self._windows: dict[str, dict[str, Window]] = {name: {} for name in models}

    def observe(self, score: Score, caller: str) -> None:
        """Count a score, unless it was steered: what a profile does is no drift."""
        for head in score.heads:
            self.observe(head, caller)
        name = score.model.partition("@")[0]
        if score.steer or name not in self._edges:
            return
        edges, callers = self._edges[name], self._windows[name]
        if caller not in callers:
            caller = caller if len(callers) < MOST_CALLERS else OTHERS
            callers.setdefault(caller, Window(len(edges)))
        plain = score.reward - score.length_correction
        values = np.concatenate([[plain, score.distance], score.projections])
        callers[caller].add((values[:, None] > edges).sum(1))
        if callers[caller].seen % EVERY == 0:
            self._publish(name, caller)

    def report(self, name: str) -> dict[str, Any]:
        """Each caller's window of a model."""
        return {caller: self._told(name, window) for caller, window in self._windows[name].items()}

    def _told(self, name: str, window: Window) -> dict[str, Any]:
        counts = window.counts
        found: dict[str, Any] = {"responses": int(counts[REWARD].sum()), "enough": _enough(counts)}
        if not found["enough"]:
            return found
        apart = stability(counts)
        features = self._models[name].features
        most = np.argsort(-apart[FIRST:], kind="stable")[:SHOWN].tolist()
        return {
            **found,
            "reward": float(apart[REWARD]),
            "distance": float(apart[DISTANCE]),
            "projections": float(apart[FIRST:].mean()),
            "features": [
                {"id": features[i].latent, "label": features[i].label, "psi": float(apart[FIRST + i])}
                for i in most
            ],
        }

    def _publish(self, name: str, caller: str) -> None:
        counts = self._windows[name][caller].counts
        if not _enough(counts):
            return
        apart = stability(counts)
        for what, value in (
            ("reward", apart[REWARD]),
            ("distance", apart[DISTANCE]),
            ("projections", apart[FIRST:].mean()),
        ):
            self._metrics.drift.labels(name, caller, what).set(float(value))


def stability(counts: Counts) -> NDArray[np.float64]:
    """PSI of each row against even bins; half a response in each bin keeps it finite."""
    shares = (counts + 0.5) / (counts.sum(1, keepdims=True) + BINS / 2)
    found: NDArray[np.float64] = ((shares - 1 / BINS) * np.log(shares * BINS)).sum(1)
    return found


def _enough(counts: Counts) -> bool:
    return bool(counts[REWARD].sum() >= LEAST)


def _edges(model: RewardModel) -> NDArray[np.float64]:
    """Deciles that held-out training prompts had, a row a quantity."""
    head, tables = model.head, model.calibration
    step = (tables.rewards.shape[1] - 1) // BINS
    deciles = head.center[:, None] + head.scale[:, None] * tables.projections
    rewards = tables.rewards[0, step:-1:step]
    percentiles = np.linspace(0, 100, BINS + 1)[1:-1]
    found: NDArray[np.float64] = np.vstack([rewards.cpu().numpy(), percentiles, deciles.cpu().numpy()])
    return found
