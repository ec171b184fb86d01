"""Continuous batching: one asyncio task collects queued jobs into batches, and executor threads run them.

There is no timer. While batches run, the next one collects; it is taken from the queue before the device is
free only if it is full. So an idle server scores at once and a busy one always runs full batches. A batch
that fails is split into halves, which are run again, until the items that fail are alone. A device that fails
its probes is not used any more.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from app.errors import DeviceLost, NonFiniteScore, ServiceUnavailable, SparseRMError
from app.scores import ScoredItem
from app.serve.batching.admission import AdmissionControl, BatchLoad, Reservation
from app.serve.batching.executor import Executor, ExecutorSlot
from app.serve.batching.fair_queue import FailedItem, FairQueue, QueuedJob, pop_batch
from app.serve.batching.request_context import RequestContext
from app.serve.metrics import Metrics
from app.types import ScoreJob

log = logging.getLogger("sparserm")
T = TypeVar("T")
# The budget never shrinks below this many new tokens per batch.
MIN_BATCH_TOKENS = 64
# Share of the full budget that each batch without an error adds to a budget that has shrunk.
BUDGET_GROWTH = 0.01


class Device(Protocol):
    """The methods of the engine that the batcher calls."""

    def prepare(self, jobs: Sequence[ScoreJob]) -> Any:
        """Pack a batch; runs off the device's thread."""

    def run(self, prepared: Any) -> Sequence[ScoredItem | NonFiniteScore]:
        """Run one forward pass over a packed batch; return one result per job."""

    def verify(self) -> None:
        """Score the probes; raise an error if a reward is wrong, because the device then computes wrongly."""


class Batcher:
    """Queue, admission control and executor in front of the device; use it as an async context manager.

    `on_device_lost` is called once, when the device is declared lost; no request is accepted after that.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        batch_tokens: int,
        queue_tokens: int,
        executor: Executor | None = None,
        device_timeout_s: float = 120.0,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.admission = AdmissionControl(queue_tokens, metrics)
        self.device_lost = False
        self._metrics = metrics
        self._full_budget = self._budget = batch_tokens
        self._device_timeout_s = device_timeout_s
        self._on_device_lost = on_device_lost
        self._queue = FairQueue()
        self._executor = executor or Executor()
        self._wake = asyncio.Event()
        self._closing = False
        self._packing_pool = ThreadPoolExecutor(1, "pack")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        await self._task
        self._packing_pool.shutdown(wait=not self.device_lost)
        self._executor.shutdown(wait=not self.device_lost)

    @property
    def accepting(self) -> bool:
        """Whether new requests are accepted."""
        return not (self._closing or self.device_lost)

    def reserve(self, tokens: int, context: RequestContext) -> Reservation:
        """Return a reservation for a request of about `tokens`, or raise an error that says when to retry."""
        if self.device_lost:
            raise ServiceUnavailable("the device is lost; this process ends", code="device_lost")
        if self._closing:
            raise ServiceUnavailable("the server is shutting down; send this to another one", code="closing")
        load = BatchLoad(
            queued_tokens=self._queue.num_tokens,
            processed_tokens=self._executor.processed_tokens(self.admission.tokens_per_second),
            slot_tokens=self._slot_tokens,
            batch_tokens=self._budget,
            tokens_ahead=partial(self._queue.tokens_ahead, tokens, context),
        )
        return self.admission.reserve(tokens, context, load)

    async def submit(
        self, jobs: Sequence[ScoreJob], device: Device, reservation: Reservation
    ) -> list[ScoredItem | FailedItem]:
        """Score jobs; return one result per job, in order. A job that fails does not affect the others."""
        context, loop = reservation.context, asyncio.get_running_loop()
        queued = [QueuedJob(job, device, loop.create_future(), reservation.deadline) for job in jobs]
        for job in queued:
            job.future.add_done_callback(partial(_release, reservation, job.num_tokens))
        self._queue.add(queued, context)
        self._record_queue_metrics()
        self._wake.set()
        try:
            return list(await asyncio.gather(*(job.future for job in queued)))
        finally:
            self._metrics.dropped.inc(self._queue.remove(queued, context))
            self._record_queue_metrics()

    async def run_on_device(self, function: Callable[[], T], slot: ExecutorSlot | None = None) -> T:
        """Run a function on an executor thread between two batches; DeviceLost if it takes too long."""
        try:
            return await asyncio.wait_for(self._executor.submit(function, slot), self._device_timeout_s)
        except TimeoutError as error:
            raise DeviceLost(f"the device has not answered for {self._device_timeout_s:.0f} s") from error

    async def _serve(self) -> None:
        try:
            await self._run_batches()
        except Exception as error:  # noqa: BLE001 - without this task no request would ever be answered
            self._lose_device(error)

    async def _run_batches(self) -> None:
        running = set[asyncio.Task[None]]()
        while batch := await self._next_batch():
            prepared = await self._prepare(batch)
            while not self._executor.has_free_slot:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            share_threads = self._queue.num_new_tokens >= self._slot_tokens
            slot = self._executor.acquire(_count_tokens(batch), share_threads=share_threads)
            running = {task for task in running if not task.done()}
            running.add(asyncio.create_task(self._run_batch(batch, prepared, slot)))
        await asyncio.gather(*running)

    @property
    def _slot_tokens(self) -> int:
        """New tokens of one slot's batch when all slots share the budget."""
        return math.ceil(self._budget / len(self._executor))

    def _max_new_tokens(self) -> int:
        """Return the new tokens to take from the queue now: a slot's share, the whole budget, or 0 to wait.

        It is a slot's share if the queue holds a whole budget, or a slot's share that can run beside the
        running batches. It is the whole budget if nothing runs. Otherwise it is 0: while a batch runs,
        smaller batches wait, because more responses to the same prompt may still arrive.
        """
        can_join = self._executor.shares_threads and self._executor.has_free_slot
        if self._queue.num_new_tokens >= (self._slot_tokens if can_join else self._budget):
            return self._slot_tokens
        return 0 if self._executor.busy_slots else self._budget

    async def _next_batch(self) -> list[QueuedJob]:
        """Wait for the next batch: any if nothing runs, a full one otherwise; empty after closing."""
        while True:
            if self._queue.peek() and (max_new_tokens := self._max_new_tokens()):
                batch = pop_batch(self._queue, max_new_tokens, self._budget)
                self._record_queue_metrics()
                if batch:
                    return batch
            elif self._closing and not self._queue.peek():
                return []
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _prepare(self, batch: list[QueuedJob]) -> Any:
        """Pack the batch; return None if packing fails."""
        jobs = [queued.job for queued in batch]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._packing_pool, batch[0].device.prepare, jobs
            )
        except Exception:  # noqa: BLE001 - after any error the items are tried again in halves
            return None

    async def _run_batch(self, batch: list[QueuedJob], prepared: Any, slot: ExecutorSlot) -> None:
        started_at = time.monotonic()
        try:
            results = await self._score_and_verify(batch, prepared, slot)
            for queued, result in list(zip(batch, results, strict=True)):
                queued.resolve(result, started_at)
            seconds = (time.monotonic() - started_at) / len(self._executor.busy_slots)
            self._record_batch_metrics(batch, results, seconds)
        except Exception as error:  # noqa: BLE001 - every error of a single item is a result by now
            self._lose_device(error, batch)
        finally:
            self._executor.release(slot)
            self._wake.set()

    async def _score_and_verify(
        self, batch: list[QueuedJob], prepared: Any, slot: ExecutorSlot
    ) -> Sequence[ScoredItem | SparseRMError]:
        """Score the batch; if no item could be scored, check the device with its probes."""
        if self.device_lost:
            raise DeviceLost("the device is lost")
        results = await self._score(batch, prepared, slot)
        if not any(isinstance(result, ScoredItem) for result in results):
            await self.run_on_device(batch[0].device.verify, slot)
        return results

    async def _score(
        self, batch: list[QueuedJob], prepared: Any, slot: ExecutorSlot
    ) -> Sequence[ScoredItem | SparseRMError]:
        device = batch[0].device
        try:
            if prepared is None:
                prepared = device.prepare([queued.job for queued in batch])
            return await self.run_on_device(lambda: device.run(prepared), slot)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - caused by one item or by the batch size
            return await self._score_in_halves(batch, error, slot)

    async def _score_in_halves(
        self, batch: list[QueuedJob], error: Exception, slot: ExecutorSlot
    ) -> Sequence[ScoredItem | SparseRMError]:
        """Score a failed batch again in halves; an item that failed alone gets its error as the result."""
        self._metrics.batches_retried.inc()
        log.warning("a batch of %d items failed (%s)", len(batch), type(error).__name__)
        out_of_memory = isinstance(error, MemoryError)
        if out_of_memory:
            self._shrink_budget(batch)
        if len(batch) == 1:
            code = "out_of_memory" if out_of_memory else "device_error"
            return [SparseRMError(f"scoring this item failed ({type(error).__name__})", code=code)]
        middle = len(batch) // 2
        halves = (batch[:middle], batch[middle:])
        return [result for half in halves for result in await self._score(half, None, slot)]

    def _shrink_budget(self, batch: list[QueuedJob]) -> None:
        """Halve the tokens of a batch after one did not fit; batches that succeed raise them again slowly."""
        self._budget = max(MIN_BATCH_TOKENS, min(self._budget, _count_tokens(batch)) // 2)
        log.warning("out of memory: batches have at most %d new tokens from now on", self._budget)

    def _lose_device(self, error: Exception, batch: Sequence[QueuedJob] = ()) -> None:
        """Declare the device lost; fail `batch` and all queued jobs, so that callers send them elsewhere."""
        if not self.device_lost:
            self.device_lost = True
            log.critical("the device is lost (%s: %s)", type(error).__name__, error)
            self._on_device_lost()
        unavailable = ServiceUnavailable("the device is lost; send this again", code="device_lost")
        remaining = list(batch)
        while self._queue.peek():
            remaining.append(self._queue.pop())
        for queued in remaining:
            queued.resolve(unavailable, time.monotonic())

    def _record_batch_metrics(
        self, batch: list[QueuedJob], results: Sequence[ScoredItem | SparseRMError], seconds: float
    ) -> None:
        scored = [result for result in results if isinstance(result, ScoredItem)]
        computed_tokens = sum(item.computed_tokens for item in scored)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_tokens.observe(computed_tokens)
        self._metrics.non_finite.inc(sum(isinstance(result, NonFiniteScore) for result in results))
        if len(scored) == len(batch):
            self._budget = min(self._full_budget, self._budget + round(BUDGET_GROWTH * self._full_budget))
            if self._queue.num_items:
                self.admission.record_batch(_count_tokens(batch), seconds)
            self._metrics.tokens_saved.inc(_count_tokens(batch) - computed_tokens)
        self._metrics.batch_budget_tokens.set(self._budget)
        for item in scored[:1]:
            self._metrics.stage_seconds.labels("forward").observe(item.forward_s)
            self._metrics.stage_seconds.labels("head").observe(item.head_s)

    def _record_queue_metrics(self) -> None:
        self._metrics.queue_items.set(self._queue.num_items)
        self._metrics.queue_tokens.set(self._queue.num_tokens)


def _count_tokens(batch: Sequence[QueuedJob]) -> int:
    return sum(queued.num_tokens for queued in batch)


def _release(reservation: Reservation, tokens: int, _: object) -> None:
    reservation.release(tokens)
