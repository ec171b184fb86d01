"""Scores rows with engines on a Ray cluster; each chunk is scored as a whole by one of them.

The numbers of a chunk depend on its rows alone, not on the engine that scores it. So the output, and where an
interrupted run is resumed, are the same as with one engine.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle
from typing import Any

import ray
from ray.exceptions import RayTaskError

from app.offline.local import open_local_scorer
from app.offline.scorers import Fingerprint, RowResult, RowScorer, ScoringRequest
from app.offline.tasks import RowItems
from app.serve.ray.cluster import connect
from app.settings import Settings
from app.types import Progress


@contextmanager
def open_ray_scorer(request: ScoringRequest, settings: Settings, progress: Progress) -> Iterator[RowScorer]:
    """Start one engine per GPU of the cluster, or as many as the setting `workers` if that is more."""
    cores = settings.threads or len(os.sched_getaffinity(0))
    with connect(max(cores, settings.workers)):
        gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.device in ("auto", "cuda") else 0
        engines = max(settings.workers, gpus)
        threads = max(1, cores // engines)
        update = {"threads": threads, "models_dir": settings.models_dir.absolute()}
        engine_settings = settings.model_copy(update=update)
        resources = {"num_gpus": min(1, gpus / engines), "num_cpus": 0 if gpus else threads}
        progress("engines", 0.0)
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, **resources)(RayEngineActor)
        yield RayScorer([actor.remote(request, engine_settings) for _ in range(engines)])


class RayScorer:
    """Assigns chunks to the engines in turn; as many chunks are in flight as there are engines."""

    def __init__(self, engines: Sequence[Any]) -> None:
        try:
            self.fingerprint: Fingerprint = ray.get([engine.fingerprint.remote() for engine in engines])[0]
        except RayTaskError as error:
            raise error.cause from error
        self.prefetch = len(engines)
        self._next_engine = cycle(engines)

    def prepare(self, rows: Sequence[RowItems]) -> Any:
        """Send the rows to the next engine; return a reference to its results."""
        return next(self._next_engine).score.remote(list(rows))

    def score(self, prepared: Any) -> list[RowResult]:
        """Wait for the results."""
        results: list[RowResult] = ray.get(prepared)
        return results


class RayEngineActor:
    """A local scorer in a Ray actor. Ray restarts an actor that is lost, and sends its calls again."""

    def __init__(self, request: ScoringRequest, settings: Settings) -> None:
        self._context = open_local_scorer(request, settings, lambda *_: None)

    @cached_property
    def _scorer(self) -> RowScorer:
        """The scorer; loaded on first use, so that a failure is raised by the call and not by the actor."""
        return self._context.__enter__()

    def fingerprint(self) -> Fingerprint:
        """Return what determines the scorer's numbers."""
        return self._scorer.fingerprint

    def score(self, rows: list[RowItems]) -> list[RowResult]:
        """Prepare and score rows."""
        return self._scorer.score(self._scorer.prepare(rows))
