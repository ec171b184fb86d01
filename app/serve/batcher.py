"""Many small requests → few full passes: one task, one device thread, no timer.

While one pass runs, the next batch gathers. It is sealed early, one ahead, only once a full budget waits; so
an idle server answers at once and a busy one always runs full passes. A pass that fails is run again in
halves, down to the item that fails alone; a device that fails at everything is given up.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from app.errors import Closing, DeviceLost, NonFinite, Overloaded, SparseRMError
from app.model.packing import Trie
from app.serve.backlog import Backlog, Room
from app.serve.line import Entry, Line
from app.serve.metrics import Metrics
from app.types import Job, Scored, Terms

log = logging.getLogger("sparserm")
Result = Scored | SparseRMError
T = TypeVar("T")
LEAST_BUDGET = 64
REGROWTH = 0.01


class Device(Protocol):
    """The verbs of the engine that a batch needs."""

    def prepare(self, jobs: Sequence[Job]) -> Any:
        """Lay a batch out; needs no device."""

    def run(self, prepared: Any) -> Sequence[Scored | NonFinite]:
        """One forward pass."""

    def verify(self) -> None:
        """Score what it knows the answer of; fails where the device cannot be trusted."""


class Answer(NamedTuple):
    """A job's result, and how long it waited for the device."""

    result: Result
    wait_s: float


def next_batch(line: Line, budget: int) -> list[Entry]:
    """Take entries in order until their new tokens fill the budget; the first always fits.

    A batch is for one device: while models change, entries for the old and the new engine stay apart.
    """
    batch: list[Entry] = []
    trie = Trie()
    now = time.monotonic()
    while entry := line.first():
        ids = entry.job.encoded.ids
        if entry.until < now:
            _settle(line.pop(), Overloaded("its time is over", code="deadline_exceeded"), now)
        elif batch and (entry.device is not batch[0].device or trie.size + trie.cost(ids) > budget):
            break
        else:
            trie.add(ids)
            batch.append(line.pop())
    return batch


class Running(NamedTuple):
    """How much the device works on, and since when."""

    tokens: int = 0
    since: float = 0.0


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
        self._running = Running()
        self._wake = asyncio.Event()
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
        self._packer.shutdown(wait=not self.lost)
        self._worker.shutdown(wait=not self.lost)

    @property
    def accepting(self) -> bool:
        """Whether new work is taken."""
        return not (self._closing or self.lost)

    def room(self, tokens: int, terms: Terms) -> Room:
        """Room for a request of about so many tokens, or a refusal that says when to come back."""
        if self.lost:
            raise Closing("the device is lost; this process ends", code="device_lost")
        if self._closing:
            raise Closing("the server is shutting down; send this to another one", code="closing")
        return self.backlog.room(tokens, terms, partial(self._until, tokens, terms), self._budget)

    def _until(self, tokens: int, terms: Terms) -> float:
        """Tokens to work off until a newcomer with so many is answered: passes are answered whole."""
        begun = self.backlog.tokens - self._line.tokens
        done = min(self._running.tokens, self.backlog.speed * (time.monotonic() - self._running.since))
        passes = math.ceil((self._line.ahead(tokens, terms) + tokens) / self._budget)
        return begun - done + passes * self._budget

    async def submit(self, jobs: Sequence[Job], device: Device, room: Room) -> list[Answer]:
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

    async def on_device(self, work: Callable[[], T]) -> T:
        """Do something on the device's thread, between two passes."""
        try:
            running = asyncio.get_running_loop().run_in_executor(self._worker, work)
            return await asyncio.wait_for(running, self._hang_s)
        except TimeoutError as error:
            raise DeviceLost(f"the device has not answered for {self._hang_s:.0f} s") from error

    async def _serve(self) -> None:
        try:
            await self._passes()
        except Exception as error:  # noqa: BLE001 - without this task nothing would ever be answered
            self._lose([], error)

    async def _passes(self) -> None:
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
            if self._line.first() and (idle or self._line.tokens >= self._budget):
                batch = next_batch(self._line, self._budget)
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

    async def _pass(self, batch: list[Entry], prepared: Any) -> None:
        started = time.monotonic()
        self._running = Running(sum(entry.tokens for entry in batch), started)
        try:
            results = await self._results(batch, prepared)
        except Exception as error:  # noqa: BLE001 - what is left is a lost device
            results = self._lose(batch, error)
        for entry, result in zip(batch, results, strict=True):
            _settle(entry, result, started)
        self._measure(batch, results, time.monotonic() - started)
        self._running = Running()
        self._wake.set()

    async def _results(self, batch: list[Entry], prepared: Any) -> Sequence[Result]:
        if self.lost:
            raise DeviceLost("the device is lost")
        results = await self._tried(batch, prepared)
        if not any(isinstance(result, Scored) for result in results):
            await self.on_device(batch[0].device.verify)
        return results

    async def _tried(self, batch: list[Entry], prepared: Any) -> Sequence[Result]:
        try:
            if prepared is None:
                prepared = batch[0].device.prepare([entry.job for entry in batch])
            return await self.on_device(lambda: batch[0].device.run(prepared))
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - one item's fault, or too much at once: find out
            return await self._rescued(batch, error)

    async def _rescued(self, batch: list[Entry], error: Exception) -> Sequence[Result]:
        """The batch in halves, down to the item that fails alone; that one is tried no more."""
        self._metrics.retried.inc()
        log.warning("a pass over %d items failed (%s)", len(batch), type(error).__name__)
        if isinstance(error, MemoryError):
            self._shrink(batch)
        if len(batch) == 1:
            cause = "out_of_memory" if isinstance(error, MemoryError) else "device_error"
            return [SparseRMError(f"scoring this item failed ({type(error).__name__})", code=cause)]
        middle = len(batch) // 2
        return [*await self._tried(batch[:middle], None), *await self._tried(batch[middle:], None)]

    def _shrink(self, batch: list[Entry]) -> None:
        """What did not fit is not tried again; good passes widen the budget little by little."""
        self._budget = max(LEAST_BUDGET, min(self._budget, sum(entry.tokens for entry in batch)) // 2)
        log.warning("out of memory: passes of %d new tokens from now on", self._budget)

    def _lose(self, batch: list[Entry], error: Exception) -> list[Result]:
        """Give the device up: whatever waits is sent elsewhere."""
        if not self.lost:
            self.lost = True
            log.critical("the device is lost (%s: %s)", type(error).__name__, error)
            self._give_up()
        gone = Closing("the device is lost; send this again", code="device_lost")
        while self._line.first():
            _settle(self._line.pop(), gone, time.monotonic())
        return [gone] * len(batch)

    def _measure(self, batch: list[Entry], results: Sequence[Result], seconds: float) -> None:
        scored = [result for result in results if isinstance(result, Scored)]
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


def _settle(entry: Entry, result: Result, started: float) -> None:
    if not entry.future.done():
        entry.future.set_result(Answer(result, started - entry.queued))
