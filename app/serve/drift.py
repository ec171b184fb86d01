"""Drift monitoring: whether the scored responses still look like those the model was trained on, per caller.

Memory is constant: bin counts in two half-windows per model and caller, for at most MAX_CALLERS callers per
model; all later callers share one window.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluate.audit import shift
from app.evaluate.audit.shift import BINS, FIRST_PROJECTION, REWARD, BinCounts
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.serve.api.response_schemas import CallerDriftSchema, FeatureDriftSchema
from app.serve.metrics import Metrics

HALF_WINDOW = 1000
MIN_RESPONSES = 200
PUBLISH_EVERY = 50
MAX_CALLERS = 32
MAX_REPORTED_FEATURES = 10
OTHER_CALLERS = "other"


class DriftWindow:
    """Bin counts of the last one to two half-windows of responses; rows are quantities, columns are bins."""

    def __init__(self, num_quantities: int) -> None:
        self._older = np.zeros((num_quantities, BINS), dtype=np.int64)
        self._newer = np.zeros_like(self._older)
        self.num_responses = 0

    def add(self, bins: NDArray[np.intp]) -> None:
        """Count one response; the older half-window is dropped when the newer one is full."""
        if self.num_responses and self.num_responses % HALF_WINDOW == 0:
            self._older, self._newer = self._newer, np.zeros_like(self._newer)
        shift.count_response(self._newer, bins)
        self.num_responses += 1

    @property
    def counts(self) -> BinCounts:
        """The counts of both half-windows together."""
        counts: BinCounts = self._older + self._newer
        return counts


class DriftMonitor:
    """The drift windows of one server, one per model and caller."""

    def __init__(self, models: Mapping[str, RewardModel], metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: Mapping[str, RewardModel] = {}
        self._windows: dict[str, dict[str, DriftWindow]] = {}
        self.watch(models)

    def watch(self, models: Mapping[str, RewardModel]) -> None:
        """Watch these models from now on; a model that is unchanged keeps its windows."""
        unchanged = {name for name, model in models.items() if self._models.get(name) is model}
        for name in set(self._windows) - unchanged:
            for caller in self._windows[name]:
                for quantity in shift.SUMMARY_NAMES:
                    with suppress(KeyError):
                        self._metrics.drift_psi.remove(name, caller, quantity)
        self._windows = {name: self._windows[name] if name in unchanged else {} for name in models}
        self._edges = {name: shift.bin_edges(model) for name, model in models.items()}
        self._models = models

    def observe(self, score: Score, caller: str) -> None:
        """Count a score and the scores of its parts; steered scores differ on purpose and are skipped."""
        for part_score in score.part_scores:
            self.observe(part_score, caller)
        name = score.model.partition("@")[0]
        if score.steer or name not in self._edges:
            return
        edges, windows = self._edges[name], self._windows[name]
        if caller not in windows:
            caller = caller if len(windows) < MAX_CALLERS else OTHER_CALLERS
            windows.setdefault(caller, DriftWindow(len(edges)))
        windows[caller].add(shift.assign_bins(score, edges))
        if windows[caller].num_responses % PUBLISH_EVERY == 0:
            self._publish(name, caller)

    def report(self, name: str) -> dict[str, Any]:
        """Return the drift of a model per caller, as GET /v1/models/{id}/drift returns it."""
        return {caller: self._describe(name, window) for caller, window in self._windows[name].items()}

    def _describe(self, name: str, window: DriftWindow) -> dict[str, Any]:
        counts = window.counts
        summary = CallerDriftSchema(responses=int(counts[REWARD].sum()), enough=_has_enough(counts))
        if not summary.enough:
            return summary.model_dump(exclude_unset=True)
        psi = shift.stability_index(counts)
        projection_psi = psi[FIRST_PROJECTION:]
        features = self._models[name].features
        largest = np.argsort(-projection_psi, kind="stable")[:MAX_REPORTED_FEATURES].tolist()
        feature_drifts = [
            FeatureDriftSchema(id=features[i].latent, label=features[i].label, psi=float(projection_psi[i]))
            for i in largest
        ]
        return summary.model_copy(update={**shift.summarize(counts), "features": feature_drifts}).model_dump()

    def _publish(self, name: str, caller: str) -> None:
        counts = self._windows[name][caller].counts
        if not _has_enough(counts):
            return
        for quantity, psi in shift.summarize(counts).items():
            self._metrics.drift_psi.labels(name, caller, quantity).set(psi)


def _has_enough(counts: BinCounts) -> bool:
    return bool(counts[REWARD].sum() >= MIN_RESPONSES)
