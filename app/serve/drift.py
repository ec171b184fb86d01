"""Drift monitoring: whether the scored responses still look like those the model was trained on, per caller.

The mean contribution of each concept says in words what recent rewards are made of; one that grows during
training shows what a policy optimises. Memory is constant: sums and bin counts in two half-windows per model
and caller, for at most MAX_CALLERS callers per model; all later callers share one window.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluate.audit import shift
from app.evaluate.audit.shift import BINS, FIRST_PROJECTION, REWARD, BinCounts
from app.reward.reward_model import RewardModel
from app.scores import DoubleArray, Score
from app.serve.api.response_schemas import CallerDriftSchema, ConceptDriftSchema, FeatureDriftSchema
from app.serve.metrics import Metrics

HALF_WINDOW = 1000
MIN_RESPONSES = 200
PUBLISH_EVERY = 50
MAX_CALLERS = 32
MAX_REPORTED_FEATURES = 10
OTHER_CALLERS = "other"


class DriftWindow:
    """Bin counts of the last one to two half-windows of responses; rows are quantities, columns are bins.

    The sums of concepts' contributions (C,) are kept for the same responses.
    """

    def __init__(self, num_quantities: int, num_concepts: int) -> None:
        self._older = np.zeros((num_quantities, BINS), dtype=np.int64)
        self._newer = np.zeros_like(self._older)
        self._older_concepts = np.zeros(num_concepts)
        self._newer_concepts = np.zeros(num_concepts)
        self.num_responses = 0

    def add(self, bins: NDArray[np.intp], concepts: DoubleArray) -> None:
        """Count one response; the older half-window is dropped when the newer one is full."""
        if self.num_responses and self.num_responses % HALF_WINDOW == 0:
            self._older, self._newer = self._newer, np.zeros_like(self._newer)
            self._older_concepts, self._newer_concepts = self._newer_concepts, np.zeros_like(concepts)
        shift.count_response(self._newer, bins)
        self._newer_concepts += concepts
        self.num_responses += 1

    def mean_concepts(self) -> DoubleArray:
        """Return the mean contribution of each concept to recent rewards, (C,)."""
        return (self._older_concepts + self._newer_concepts) / max(int(self.counts[REWARD].sum()), 1)

    def change_of_concepts(self) -> DoubleArray | None:
        """Return by how much the means rose from the older half-window to the newer; None without both."""
        older, newer = (int(counts[REWARD].sum()) for counts in (self._older, self._newer))
        if min(older, newer) < PUBLISH_EVERY:
            return None
        return self._newer_concepts / newer - self._older_concepts / older

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
                for concept in self._models[name].concepts if name in self._models else ():
                    with suppress(KeyError):
                        self._metrics.concept_contribution.remove(name, caller, concept.name)
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
            windows.setdefault(caller, DriftWindow(len(edges), len(self._models[name].concepts)))
        concepts = score.contributions @ self._models[name].concept_membership
        windows[caller].add(shift.assign_bins(score, edges), concepts)
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
        changes = window.change_of_concepts()
        concepts = [
            ConceptDriftSchema(
                name=concept.name, mean=float(mean), change=None if changes is None else float(changes[i])
            )
            for i, (concept, mean) in enumerate(
                zip(self._models[name].concepts, window.mean_concepts(), strict=True)
            )
        ]
        update = {**shift.summarize(counts), "features": feature_drifts, "concepts": concepts}
        return summary.model_copy(update=update).model_dump()

    def _publish(self, name: str, caller: str) -> None:
        counts = self._windows[name][caller].counts
        if not _has_enough(counts):
            return
        for quantity, psi in shift.summarize(counts).items():
            self._metrics.drift_psi.labels(name, caller, quantity).set(psi)
        means = self._windows[name][caller].mean_concepts()
        for concept, mean in zip(self._models[name].concepts, means, strict=True):
            self._metrics.concept_contribution.labels(name, caller, concept.name).set(float(mean))


def _has_enough(counts: BinCounts) -> bool:
    return bool(counts[REWARD].sum() >= MIN_RESPONSES)
