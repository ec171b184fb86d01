"""The threads that run batches: several side by side, each on a share of the CPU threads, or one on all.

A batch on several CPU threads waits for the slowest thread at every matrix product, and uses only one thread
where the work is not parallel. Batches that run side by side do not wait for each other, but each takes
longer, so this is faster only while other items would have to wait.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class ExecutorSlot:
    """A thread that runs batches; `tokens`, `started_at` and `uses_all_threads` are of its current batch."""

    pool: ThreadPoolExecutor
    busy: bool = False
    tokens: int = 0
    started_at: float = 0.0
    uses_all_threads: bool = False


class Executor:
    """Runs up to `num_slots` batches side by side.

    Before each call, `set_thread_share` is called on the slot's thread with the number of slots that the CPU
    threads are divided among.
    """

    def __init__(self, num_slots: int = 1, set_thread_share: Callable[[int], None] = lambda _: None) -> None:
        self._slots = [ExecutorSlot(ThreadPoolExecutor(1, f"device-{index}")) for index in range(num_slots)]
        self._set_thread_share = set_thread_share

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def busy_slots(self) -> list[ExecutorSlot]:
        """The slots that run a batch."""
        return [slot for slot in self._slots if slot.busy]

    @property
    def shares_threads(self) -> bool:
        """Whether the running batches use a share of the CPU threads each."""
        return any(not slot.uses_all_threads for slot in self.busy_slots)

    @property
    def has_free_slot(self) -> bool:
        """Whether another batch may start: a slot is free and no batch uses all CPU threads."""
        busy = self.busy_slots
        return len(busy) < len(self._slots) and not any(slot.uses_all_threads for slot in busy)

    def acquire(self, tokens: int, *, share_threads: bool) -> ExecutorSlot:
        """Take a free slot for a batch; it uses all CPU threads unless `share_threads` or if others run."""
        uses_all_threads = not share_threads and not self.busy_slots
        slot = next(slot for slot in self._slots if not slot.busy)
        slot.busy, slot.tokens, slot.started_at = True, tokens, time.monotonic()
        slot.uses_all_threads = uses_all_threads
        return slot

    def release(self, slot: ExecutorSlot) -> None:
        """Free the slot after its batch."""
        slot.busy = False

    def submit(self, function: Callable[[], T], slot: ExecutorSlot | None = None) -> asyncio.Future[T]:
        """Run a function on the slot's thread; without a slot, on the first one's with all CPU threads."""
        num_shares = 1 if slot is None or slot.uses_all_threads else len(self._slots)

        def run() -> T:
            self._set_thread_share(num_shares)
            return function()

        return asyncio.get_running_loop().run_in_executor((slot or self._slots[0]).pool, run)

    def processed_tokens(self, tokens_per_second: float) -> float:
        """Estimate the computed tokens of the running batches, at this speed of all slots together."""
        now, busy = time.monotonic(), self.busy_slots
        slot_speed = tokens_per_second / max(len(busy), 1)
        return sum(min(slot.tokens, slot_speed * (now - slot.started_at)) for slot in busy)

    def shutdown(self, *, wait: bool) -> None:
        """Stop the threads; with `wait`, wait until their running calls have ended."""
        for slot in self._slots:
            slot.pool.shutdown(wait=wait)
