"""Whether what is scored still looks like what the models were made on, by caller.

Memory is constant: counts in bins, in two half-windows a caller, for so many callers and no more; whoever
comes later shares one window.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluate.audit import shift
from app.evaluate.audit.shift import BINS, FIRST, REWARD, Counts
from app.reward.bundle import RewardModel
from app.serve.metrics import Metrics
from app.types import Score

HALF_WINDOW, LEAST, EVERY = 1000, 200, 50
MOST_CALLERS = 32
SHOWN = 10
OTHERS = "other"


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
        shift.add(self._new, bins)
        self.seen += 1

    @property
    def counts(self) -> Counts:
        """What is in the window."""
        found: Counts = self._old + self._new
        return found


class Drift:
    """The windows of one server: a model and a caller each."""

    def __init__(self, models: Mapping[str, RewardModel], metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: Mapping[str, RewardModel] = {}
        self._windows: dict[str, dict[str, Window]] = {}
        self.watch(models)

    def watch(self, models: Mapping[str, RewardModel]) -> None:
        """Watch these from now on; a model that stays the same keeps its windows."""
        same = {name for name, model in models.items() if self._models.get(name) is model}
        for name in set(self._windows) - same:
            for caller in self._windows[name]:
                for what in shift.OVERALL:
                    with suppress(KeyError):
                        self._metrics.drift.remove(name, caller, what)
        self._windows = {name: self._windows[name] if name in same else {} for name in models}
        self._edges = {name: shift.edges(model) for name, model in models.items()}
        self._models = models

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
        callers[caller].add(shift.bins(score, edges))
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
        apart = shift.stability(counts)
        features = self._models[name].features
        most = np.argsort(-apart[FIRST:], kind="stable")[:SHOWN].tolist()
        return {
            **found,
            **shift.overall(counts),
            "features": [
                {"id": features[i].latent, "label": features[i].label, "psi": float(apart[FIRST + i])}
                for i in most
            ],
        }

    def _publish(self, name: str, caller: str) -> None:
        counts = self._windows[name][caller].counts
        if not _enough(counts):
            return
        for what, value in shift.overall(counts).items():
            self._metrics.drift.labels(name, caller, what).set(value)


def _enough(counts: Counts) -> bool:
    return bool(counts[REWARD].sum() >= LEAST)
