"""A device that tests can pause, break and inspect, and a batcher in front of it."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from app.errors import BundleError, NonFiniteScore
from app.scores import ScoredItem
from app.serve.batching.batcher import Batcher
from app.serve.batching.fair_queue import FailedItem, FairQueue, QueuedJob
from app.serve.batching.request_context import RequestContext
from app.serve.metrics import Metrics
from app.types import EncodedItem, ScoreJob, ScoreOptions

FAILING_ID = 666
OUT_OF_MEMORY_ID = 777
FATAL_ID = 888
LONG_TIMEOUT = RequestContext(timeout_s=60)


class ControlledDevice:
    """A device that records its batches, can be paused, and fails on certain token ids."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.started = threading.Event()
        self.broken = False
        self.verify_calls = 0

    def verify(self) -> None:
        self.verify_calls += 1
        if self.broken:
            raise BundleError("probe 0 is off")

    def prepare(self, jobs: Sequence[ScoreJob]) -> Sequence[ScoreJob]:
        return jobs

    def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFiniteScore]:
        self.batches.append([job.encoded.ids[0] for job in prepared])
        self.started.set()
        self.may_run.wait(10)
        ids = {job.encoded.ids[0] for job in prepared}
        self.broken = self.broken or FATAL_ID in ids
        if self.broken or FAILING_ID in ids:
            raise RuntimeError("poison")
        if OUT_OF_MEMORY_ID in ids and len(prepared) > 2:
            raise MemoryError
        return [
            ScoredItem(job.encoded, (), len(job.encoded.ids), float(job.encoded.ids[0]), 0.0)
            for job in prepared
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.may_run.clear()
        try:
            yield
        finally:
            self.may_run.set()


def create_job(first_id: int, length: int = 4) -> ScoreJob:
    return ScoreJob(EncodedItem((first_id,) * length, 1), ScoreOptions(("m",)))


class DeviceBatcher(Batcher):
    """A batcher in front of one controlled device."""

    def __init__(self, device: ControlledDevice, registry: CollectorRegistry, **options: Any) -> None:
        super().__init__(Metrics(registry), **options)
        self.device = device
        self.registry = registry

    async def score(
        self,
        jobs: Sequence[ScoreJob],
        context: RequestContext = LONG_TIMEOUT,
        device: ControlledDevice | None = None,
    ) -> list[ScoredItem | FailedItem]:
        with self.reserve(sum(len(job.encoded.ids) for job in jobs), context) as reservation:
            return await self.submit(jobs, device or self.device, reservation)

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"sparserm_{name}") or 0.0


def create_batcher(
    device: ControlledDevice, batch_tokens: int = 1000, queue_tokens: int = 10_000, **options: Any
) -> DeviceBatcher:
    limits = {"batch_tokens": batch_tokens, "queue_tokens": queue_tokens}
    return DeviceBatcher(device, CollectorRegistry(), **limits, **options)


def queue_jobs(*jobs: ScoreJob) -> FairQueue:
    """A queue with the jobs of one request."""
    queue, loop = FairQueue(), asyncio.get_running_loop()
    deadline = time.monotonic() + 60
    queue.add([QueuedJob(job, None, loop.create_future(), deadline) for job in jobs], LONG_TIMEOUT)
    return queue


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)
