"""A device that can be held, broken and watched, and a batcher before it."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from app.errors import BundleError, NonFinite
from app.serve.batching.batcher import Batcher
from app.serve.batching.fair_queue import Answer, Entry, Line
from app.serve.metrics import Metrics
from app.types import EncodedItem, RequestContext, ScoredItem, ScoreJob, ScoreOptions

POISON, HUGE, DEATH = 666, 777, 888
PATIENT = RequestContext(timeout_s=60)


class Bench:
    """A device that notes its batches, waits at a gate, and chokes on poison."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.dead = False
        self.verified = 0

    def verify(self) -> None:
        self.verified += 1
        if self.dead:
            raise BundleError("probe 0 is off")

    def prepare(self, jobs: Sequence[ScoreJob]) -> Sequence[ScoreJob]:
        return jobs

    def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFinite]:
        self.batches.append([job.encoded.ids[0] for job in prepared])
        self.entered.set()
        self.gate.wait(10)
        ids = {job.encoded.ids[0] for job in prepared}
        self.dead = self.dead or DEATH in ids
        if self.dead or POISON in ids:
            raise RuntimeError("poison")
        if HUGE in ids and len(prepared) > 2:
            raise MemoryError
        return [ScoredItem((), len(job.encoded.ids), float(job.encoded.ids[0]), 0.0) for job in prepared]

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def job(first: int, length: int = 4) -> ScoreJob:
    return ScoreJob(EncodedItem((first,) * length, 1), ScoreOptions(("m",)))


class Queue(Batcher):
    """A batcher before one bench, for jobs of one kind of caller."""

    def __init__(self, bench: Bench, registry: CollectorRegistry, **choices: Any) -> None:
        super().__init__(Metrics(registry), **choices)
        self.bench = bench
        self.registry = registry

    async def ask(
        self, jobs: Sequence[ScoreJob], terms: RequestContext = PATIENT, bench: Bench | None = None
    ) -> list[Answer]:
        with self.room(sum(len(job.encoded.ids) for job in jobs), terms) as room:
            return await self.submit(jobs, bench or self.bench, room)

    def told(self, name: str) -> float:
        return self.registry.get_sample_value(f"sparserm_{name}") or 0.0


def batcher(bench: Bench, batch_tokens: int = 1000, queue_tokens: int = 10_000, **choices: Any) -> Queue:
    limits = {"batch_tokens": batch_tokens, "queue_tokens": queue_tokens}
    return Queue(bench, CollectorRegistry(), **limits, **choices)


def lined(*jobs: ScoreJob) -> Line:
    line, loop = Line(), asyncio.get_running_loop()
    until = time.monotonic() + 60
    line.join([Entry(one, None, loop.create_future(), until) for one in jobs], PATIENT)
    return line


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)
