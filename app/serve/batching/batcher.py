"""Many small requests → few full passes: one task, a device thread a lane, no timer.

While passes run, the next batch gathers. It is sealed early, one ahead, only once it is full; so an idle
server answers at once and a busy one always runs full passes. A pass that fails is run again in halves, down
to the item that fails alone; a device that fails at everything is given up.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from app.errors import Closing, DeviceLost, NonFinite, SparseRMError
from app.serve.batching.admission import Backlog, Room
from app.serve.batching.executor import Lane, Lanes
from app.serve.batching.fair_queue import Answer, Entry, Line, Result, next_batch
from app.serve.metrics import Metrics
from app.types import RequestContext, ScoredItem, ScoreJob

log = logging.getLogger("sparserm")
T = TypeVar("T")
LEAST_BUDGET = 64
REGROWTH = 0.01


class Device(Protocol):
    """The verbs of the engine that a batch needs."""

    def prepare(self, jobs: Sequence[ScoreJob]) -> Any:
        """Lay a batch out; needs no device."""

    def run(self, prepared: Any) -> Sequence[ScoredItem | NonFinite]:
        """One forward pass."""

    def verify(self) -> None:
        """Score what it knows the answer of; fails where the device cannot be trusted."""


class Batcher:
    """The line before the device; run it inside `async with`.

    `give_up` is called once, when the device is lost; from then on nothing is taken any more.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        batch_tokens: int,
        queue_tokens: int,
        lanes: Lanes | None = None,
        hang_s: float = 120.0,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.backlog = Backlog(queue_tokens, metrics)
        self.lost = False
        self._metrics = metrics
        self._full_budget = self._budget = batch_tokens
        self._hang_s = hang_s
        self._give_up = give_up
        self._line = Line()
        self._lanes = lanes or Lanes()
        self._wake = asyncio.Event()
        self._closing = False
        self._packer = ThreadPoolExecutor(1, "pack")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        await self._task
        self._packer.shutdown(wait=not self.lost)
        self._lanes.shutdown(wait=not self.lost)

    @property
    def accepting(self) -> bool:
        """Whether new work is taken."""
        return not (self._closing or self.lost)

    def room(self, tokens: int, terms: RequestContext) -> Room:
        """Room for a request of about so many tokens, or a refusal that says when to come back."""
        if self.lost:
            raise Closing("the device is lost; this process ends", code="device_lost")
        if self._closing:
            raise Closing("the server is shutting down; send this to another one", code="closing")
        return self.backlog.room(tokens, terms, partial(self._until, tokens, terms), self._budget)

    def _until(self, tokens: int, terms: RequestContext) -> float:
        """Tokens to work off until a newcomer with so many is answered: passes are answered whole.

        While its own pass runs, the other lanes work, too.
        """
        begun = self.backlog.tokens - self._line.tokens
        before = math.ceil((self._line.ahead(tokens, terms) + tokens) / self._share) - 1
        return begun - self._lanes.done(self.backlog.speed) + before * self._share + self._budget

    async def submit(self, jobs: Sequence[ScoreJob], device: Device, room: Room) -> list[Answer]:
        """Results in order; a job that fails alone answers with its error, the others with scores."""
        terms, loop = room.terms, asyncio.get_running_loop()
        entries = [Entry(job, device, loop.create_future(), room.until) for job in jobs]
        for entry in entries:
            entry.future.add_done_callback(partial(_give, room, entry.tokens))
        self._line.join(entries, terms)
        self._note_line()
        self._wake.set()
        try:
            return list(await asyncio.gather(*(entry.future for entry in entries)))
        finally:
            self._metrics.dropped.inc(self._line.leave(entries, terms))
            self._note_line()

    async def on_device(self, work: Callable[[], T], lane: Lane | None = None) -> T:
        """Do something on a device's thread, between two passes."""
        try:
            return await asyncio.wait_for(self._lanes.work(work, lane), self._hang_s)
        except TimeoutError as error:
            raise DeviceLost(f"the device has not answered for {self._hang_s:.0f} s") from error

    async def _serve(self) -> None:
        try:
            await self._passes()
        except Exception as error:  # noqa: BLE001 - without this task nothing would ever be answered
            self._lose(error)

    async def _passes(self) -> None:
        running = set[asyncio.Task[None]]()
        while batch := await self._gather():
            prepared = await self._prepare(batch)
            while not self._lanes.free:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            tokens = sum(entry.tokens for entry in batch)
            lane = self._lanes.take(tokens, crowd=self._line.fresh >= self._share)
            running = {one for one in running if not one.done()}
            running.add(asyncio.create_task(self._pass(batch, prepared, lane)))
        await asyncio.gather(*running)

    @property
    def _share(self) -> int:
        """What a lane takes at once of the tokens that all take together."""
        return math.ceil(self._budget / len(self._lanes))

    def _portion(self) -> int:
        """New tokens to take from the line now: a share for a crowd, all for few if nothing runs, or none.

        Ahead of its turn nothing is taken but from a whole budget: answers to one prompt may still be coming.
        """
        joining = self._lanes.shared and self._lanes.free
        if self._line.fresh >= (self._share if joining else self._budget):
            return self._share
        return 0 if self._lanes.busy else self._budget

    async def _gather(self) -> list[Entry]:
        """The next batch: at once when nothing runs, when full otherwise; empty at the end."""
        while True:
            if self._line.first() and (portion := self._portion()):
                batch = next_batch(self._line, portion, self._budget)
                self._note_line()
                if batch:
                    return batch
            elif self._closing and not self._line.first():
                return []
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _prepare(self, batch: list[Entry]) -> Any:
        """The batch packed, or None if packing it failed."""
        jobs = [entry.job for entry in batch]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._packer, batch[0].device.prepare, jobs
            )
        except Exception:  # noqa: BLE001 - whatever it was, the items are tried again in halves
            return None

    async def _pass(self, batch: list[Entry], prepared: Any, lane: Lane) -> None:
        started = time.monotonic()
        try:
            results = await self._results(batch, prepared, lane)
            for entry, result in list(zip(batch, results, strict=True)):
                entry.settle(result, started)
            self._measure(batch, results, (time.monotonic() - started) / len(self._lanes.busy))
        except Exception as error:  # noqa: BLE001 - what is left is a lost device
            self._lose(error, batch)
        finally:
            self._lanes.give(lane)
            self._wake.set()

    async def _results(self, batch: list[Entry], prepared: Any, lane: Lane) -> Sequence[Result]:
        if self.lost:
            raise DeviceLost("the device is lost")
        results = await self._tried(batch, prepared, lane)
        if not any(isinstance(result, ScoredItem) for result in results):
            await self.on_device(batch[0].device.verify, lane)
        return results

    async def _tried(self, batch: list[Entry], prepared: Any, lane: Lane) -> Sequence[Result]:
        try:
            if prepared is None:
                prepared = batch[0].device.prepare([entry.job for entry in batch])
            return await self.on_device(lambda: batch[0].device.run(prepared), lane)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - one item's fault, or too much at once: find out
            return await self._rescued(batch, error, lane)

    async def _rescued(self, batch: list[Entry], error: Exception, lane: Lane) -> Sequence[Result]:
        """The batch in halves, down to the item that fails alone; that one is tried no more."""
        self._metrics.retried.inc()
        log.warning("a pass over %d items failed (%s)", len(batch), type(error).__name__)
        if isinstance(error, MemoryError):
            self._shrink(batch)
        if len(batch) == 1:
            cause = "out_of_memory" if isinstance(error, MemoryError) else "device_error"
            return [SparseRMError(f"scoring this item failed ({type(error).__name__})", code=cause)]
        middle = len(batch) // 2
        halves = (batch[:middle], batch[middle:])
        return [result for half in halves for result in await self._tried(half, None, lane)]

    def _shrink(self, batch: list[Entry]) -> None:
        """What did not fit is not tried again; good passes widen the budget little by little."""
        self._budget = max(LEAST_BUDGET, min(self._budget, sum(entry.tokens for entry in batch)) // 2)
        log.warning("out of memory: passes of %d new tokens from now on", self._budget)

    def _lose(self, error: Exception, batch: Sequence[Entry] = ()) -> None:
        """Give the device up: a batch and whatever waits are sent elsewhere."""
        if not self.lost:
            self.lost = True
            log.critical("the device is lost (%s: %s)", type(error).__name__, error)
            self._give_up()
        gone = Closing("the device is lost; send this again", code="device_lost")
        left = list(batch)
        while self._line.first():
            left.append(self._line.pop())
        for entry in left:
            entry.settle(gone, time.monotonic())

    def _measure(self, batch: list[Entry], results: Sequence[Result], seconds: float) -> None:
        scored = [result for result in results if isinstance(result, ScoredItem)]
        computed = sum(result.computed_tokens for result in scored)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_tokens.observe(computed)
        self._metrics.non_finite.inc(sum(isinstance(result, NonFinite) for result in results))
        if len(scored) == len(batch):
            self._budget = min(self._full_budget, self._budget + round(REGROWTH * self._full_budget))
            if self._line.items:
                self.backlog.passed(sum(entry.tokens for entry in batch), seconds)
            self._metrics.tokens_saved.inc(sum(entry.tokens for entry in batch) - computed)
        self._metrics.budget.set(self._budget)
        for result in scored[:1]:
            self._metrics.stage_seconds.labels("forward").observe(result.forward_s)
            self._metrics.stage_seconds.labels("head").observe(result.head_s)

    def _note_line(self) -> None:
        self._metrics.queue_items.set(self._line.items)
        self._metrics.queue_tokens.set(self._line.tokens)


def _give(room: Room, tokens: int, _: object) -> None:
    room.give(tokens)
