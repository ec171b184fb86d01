"""Many small requests → few full passes: one task, one device thread, no timer.

While one pass runs, the next batch gathers. It is sealed early, one ahead, only once a full budget
waits; so an idle server answers at once and a busy one always runs full passes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from app.errors import Closing, InvalidInput, NonFinite, Overloaded, SparseRMError
from app.model.packing import Trie
from app.serve.metrics import Metrics
from app.types import Job, Scored

Result = Scored | SparseRMError


class Device(Protocol):
    """The two verbs of the engine that a batch needs."""

    def prepare(self, jobs: Sequence[Job]) -> Any:
        """Lay a batch out; needs no device."""

    def run(self, prepared: Any) -> Sequence[Scored | NonFinite]:
        """One forward pass."""


@dataclass(slots=True, eq=False)
class Entry:
    """A job in the queue and the caller that waits for it."""

    job: Job
    future: asyncio.Future["Answer"]
    queued: float = field(default_factory=time.perf_counter)

    @property
    def tokens(self) -> int:
        """Its full length, shared prefixes included."""
        return len(self.job.encoded.ids)


class Answer(NamedTuple):
    """A job's result, and how long it waited for the device."""

    result: Result
    wait_s: float


def next_batch(queue: deque[Entry], budget: int) -> list[Entry]:
    """Take entries in order until their new tokens fill the budget; the first always fits."""
    batch: list[Entry] = []
    trie = Trie()
    while queue:
        ids = queue[0].job.encoded.ids
        if queue[0].future.done():
            queue.popleft()
        elif batch and trie.size + trie.cost(ids) > budget:
            break
        else:
            trie.add(ids)
            batch.append(queue.popleft())
    return batch


class Batcher:
    """The queue before the device; run it inside `async with`."""

    def __init__(self, device: Device, metrics: Metrics, *, batch_tokens: int, queue_tokens: int) -> None:
        self._device = device
        self._metrics = metrics
        self._budget = batch_tokens
        self._limit = queue_tokens
        self._queue: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._waiting = 0
        self._closing = False
        self._packer = ThreadPoolExecutor(1, "pack")
        self._worker = ThreadPoolExecutor(1, "device")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        await self._task
        self._packer.shutdown()
        self._worker.shutdown()

    @property
    def accepting(self) -> bool:
        """Whether new work is taken."""
        return not self._closing and not self._task.done()

    async def submit(self, jobs: Sequence[Job]) -> list[Answer]:
        """Results in order; a job that fails alone answers with its error, the others with scores."""
        self._admit(sum(len(job.encoded.ids) for job in jobs))
        loop = asyncio.get_running_loop()
        entries = [Entry(job, loop.create_future()) for job in jobs]
        self._queue.extend(entries)
        self._waiting += sum(entry.tokens for entry in entries)
        self._note_queue()
        self._wake.set()
        return list(await asyncio.gather(*(entry.future for entry in entries)))

    def _admit(self, tokens: int) -> None:
        if not self.accepting:
            raise Closing("the server is shutting down; send this to another one", code="closing")
        if tokens > self._limit:
            raise InvalidInput(
                f"{tokens} tokens in one request; the queue holds {self._limit}",
                "inputs",
                "request_too_large",
            )
        if self._waiting + tokens > self._limit:
            raise Overloaded(
                f"{self._waiting} tokens are waiting already; the queue holds {self._limit}",
                code="queue_full",
            )

    async def _serve(self) -> None:
        running: asyncio.Task[None] | None = None
        while batch := await self._gather(running):
            prepared = await self._prepare(batch)
            if running:
                await running
            running = asyncio.create_task(self._pass(batch, prepared))
        if running:
            await running

    async def _gather(self, running: asyncio.Task[None] | None) -> list[Entry]:
        """The next batch: at once when the device is idle, when full otherwise; empty at the end."""
        while True:
            idle = running is None or running.done()
            if self._queue and (idle or self._waiting >= self._budget):
                if batch := self._take():
                    return batch
            elif self._closing and not self._queue:
                return []
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self) -> list[Entry]:
        """Pop a batch; entries whose caller has gone are dropped on the way."""
        before = len(self._queue)
        batch = next_batch(self._queue, self._budget)
        self._waiting = sum(entry.tokens for entry in self._queue)
        self._metrics.dropped.inc(before - len(self._queue) - len(batch))
        self._note_queue()
        return batch

    async def _prepare(self, batch: list[Entry]) -> Any:
        """The batch packed, or None if packing it failed."""
        jobs = [entry.job for entry in batch]
        try:
            return await asyncio.get_running_loop().run_in_executor(self._packer, self._device.prepare, jobs)
        except Exception:  # noqa: BLE001 - whatever it was, the items are retried one by one
            return None

    async def _pass(self, batch: list[Entry], prepared: Any) -> None:
        started = time.perf_counter()
        try:
            results = list(await self._on_device(prepared)) if prepared else await self._one_by_one(batch)
        except Exception:  # noqa: BLE001 - a batch fails for one item's sake; find it
            results = await self._one_by_one(batch)
        self._settle(batch, results, started)
        self._wake.set()

    async def _on_device(self, prepared: Any) -> Sequence[Result]:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._device.run, prepared)

    async def _one_by_one(self, batch: list[Entry]) -> list[Result]:
        self._metrics.retried.inc()
        results: list[Result] = []
        for entry in batch:
            try:
                results.extend(await self._on_device(self._device.prepare([entry.job])))
            except Exception as error:  # noqa: BLE001 - answered to the one caller it belongs to
                cause = type(error).__name__
                results.append(SparseRMError(f"scoring this item failed ({cause})", code="device_error"))
        return results

    def _settle(self, batch: list[Entry], results: Sequence[Result], started: float) -> None:
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, started - entry.queued))
        self._measure(batch, results)

    def _measure(self, batch: list[Entry], results: Sequence[Result]) -> None:
        scored = [result for result in results if isinstance(result, Scored)]
        computed = sum(result.computed_tokens for result in scored)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_tokens.observe(computed)
        self._metrics.non_finite.inc(sum(isinstance(result, NonFinite) for result in results))
        if len(scored) == len(batch):
            self._metrics.tokens_saved.inc(sum(entry.tokens for entry in batch) - computed)
        for result in scored[:1]:
            self._metrics.stage_seconds.labels("forward").observe(result.forward_s)
            self._metrics.stage_seconds.labels("head").observe(result.head_s)

    def _note_queue(self) -> None:
        self._metrics.queue_items.set(len(self._queue))
        self._metrics.queue_tokens.set(self._waiting)
