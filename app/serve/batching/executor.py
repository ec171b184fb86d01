"""Where passes run: side by side where many wait, each on its share of the threads; else one on all of them.

A pass on several threads waits for the slowest of them at every product, and for one of them wherever only
one has work. Passes side by side wait for nobody, but each takes longer: that pays where others would wait
anyhow.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Lane:
    """A thread for passes, and the one there: how many tokens, since when, whether on all threads."""

    thread: ThreadPoolExecutor
    tokens: int = 0
    since: float = 0.0
    wide: bool = False
    taken: bool = False


class Lanes:
    """As many lanes as passes may run side by side; `tell` tells a thread among how many the cores are."""

    def __init__(self, count: int = 1, tell: Callable[[int], None] = lambda _: None) -> None:
        self._lanes = [Lane(ThreadPoolExecutor(1, f"device-{number}")) for number in range(count)]
        self._tell = tell

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def busy(self) -> list[Lane]:
        """Those with a pass."""
        return [lane for lane in self._lanes if lane.taken]

    @property
    def shared(self) -> bool:
        """Whether passes run on their share of the threads."""
        return any(not lane.wide for lane in self.busy)

    @property
    def free(self) -> bool:
        """Whether another pass may begin."""
        return len(self.busy) < len(self._lanes) and not any(lane.wide for lane in self.busy)

    def take(self, tokens: int, *, crowd: bool) -> Lane:
        """A lane for a pass of so many tokens; on all threads if nothing runs and no crowd waits."""
        wide = not crowd and not self.busy
        lane = next(lane for lane in self._lanes if not lane.taken)
        lane.taken, lane.tokens, lane.since, lane.wide = True, tokens, time.monotonic(), wide
        return lane

    def give(self, lane: Lane) -> None:
        """Its pass has ended."""
        lane.taken = False

    def work(self, work: Callable[[], T], lane: Lane | None = None) -> asyncio.Future[T]:
        """Do something on a lane's thread, or on all threads between two passes of the first lane."""
        among = 1 if lane is None or lane.wide else len(self._lanes)

        def told() -> T:
            self._tell(among)
            return work()

        return asyncio.get_running_loop().run_in_executor((lane or self._lanes[0]).thread, told)

    def done(self, speed: float) -> float:
        """Of the tokens that are worked on, those that are done by now at such a speed of all together."""
        now, each = time.monotonic(), speed / max(len(self.busy), 1)
        return sum(min(lane.tokens, each * (now - lane.since)) for lane in self.busy)

    def shutdown(self, *, wait: bool) -> None:
        """No more work."""
        for lane in self._lanes:
            lane.thread.shutdown(wait=wait)
