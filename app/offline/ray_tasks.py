"""Engines on a Ray cluster as one judge: each window goes to one of them whole.

A window's numbers depend on its rows alone, wherever it is scored; so what is written, and where a killed run
goes on, is what one engine would make it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle
from typing import Any

import ray
from ray.exceptions import RayTaskError

from app.backbone.model_sources import Progress
from app.offline.local import resident
from app.offline.scorers import Facts, Found, Judge, Question
from app.offline.tasks import RowItems
from app.serve.ray.cluster import joined
from app.settings import Settings


@contextmanager
def spread(question: Question, settings: Settings, progress: Progress) -> Iterator[Judge]:
    """As many engines as the cluster has GPUs, or as `workers` says."""
    cores = settings.threads or len(os.sched_getaffinity(0))
    with joined(max(cores, settings.workers)):
        gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.device in ("auto", "cuda") else 0
        number = max(settings.workers, gpus)
        threads = max(1, cores // number)
        given = settings.model_copy(update={"threads": threads, "models_dir": settings.models_dir.absolute()})
        place = {"num_gpus": min(1, gpus / number), "num_cpus": 0 if gpus else threads}
        progress("engines", 0.0)
        engine = ray.remote(max_restarts=-1, max_task_retries=-1, **place)(Engine)
        yield Spread([engine.remote(question, given) for _ in range(number)])


class Spread:
    """Engines that take turns."""

    def __init__(self, engines: Sequence[Any]) -> None:
        try:
            self.facts: Facts = ray.get([engine.facts.remote() for engine in engines])[0]
        except RayTaskError as error:
            raise error.cause from error
        self.depth = len(engines)
        self._turns = cycle(engines)

    def prepare(self, items: Sequence[RowItems]) -> Any:
        """Send them to the engine whose turn it is."""
        return next(self._turns).answer.remote(list(items))

    def answer(self, prepared: Any) -> list[Found]:
        """Wait for what it finds."""
        found: list[Found] = ray.get(prepared)
        return found


class Engine:
    """A resident judge somewhere in the cluster; one that is lost is made again, and asked again."""

    def __init__(self, question: Question, settings: Settings) -> None:
        self._call = resident(question, settings, lambda *_: None)

    @cached_property
    def _judge(self) -> Judge:
        """Called when it is first asked, so that what is wrong with it is its answer."""
        return self._call.__enter__()

    def facts(self) -> Facts:
        """What decides its numbers."""
        return self._judge.facts

    def answer(self, items: list[RowItems]) -> list[Found]:
        """What is found about each item."""
        return self._judge.answer(self._judge.prepare(items))
