"""Who is next: the line before the device.

An item's place is the line's clock plus the work its request has put before it, times the requests its caller
has in line. So ten thousand items of one request do not stand before another's single one, and a hundred
requests of one caller not before another's one. Who was placed stays placed: nobody waits for ever. Answers
to one prompt, whoever asks, have one place as far as a pass goes, so that it is read once for all of them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from app.backbone.packing import Ids, Trie
from app.errors import Overloaded, SparseRMError
from app.types import RequestContext, ScoredItem, ScoreJob

URGENCY, TOGETHER = 16, 1024
Result = ScoredItem | SparseRMError


class Answer(NamedTuple):
    """A job's result, and how long it waited for the device."""

    result: Result
    wait_s: float


@dataclass(slots=True, eq=False)
class Entry:
    """A job in line, the device it is for, and the caller that waits for its answer."""

    job: ScoreJob
    device: Any
    future: asyncio.Future[Answer]
    until: float
    queued: float = field(default_factory=time.monotonic)
    taken: bool = False
    prompt: Ids = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = self.job.encoded.prompt

    @property
    def tokens(self) -> int:
        """Its full length, shared prefixes included."""
        return len(self.job.encoded.ids)

    @property
    def own(self) -> int:
        """What it takes where its prompt is read anyhow."""
        return self.tokens - len(self.prompt)

    def settle(self, result: Result, started: float) -> None:
        """Its answer, from a pass that began at this time."""
        if not self.future.done():
            self.future.set_result(Answer(result, started - self.queued))


@dataclass(slots=True)
class Run:
    """Answers to one prompt that are served one after the other: where they stand, and their tokens."""

    at: float
    number: int
    tokens: int


class Line:
    """Entries in the order in which they are to be served; `fresh` are their tokens, each prompt's once."""

    def __init__(self) -> None:
        self.tokens, self.fresh, self.items = 0, 0, 0
        self._waiting: Counter[Ids] = Counter()
        self._runs: dict[Ids, Run] = {}
        self._heap: list[tuple[float, int, int, Entry]] = []
        self._clock = 0.0
        self._asking: Counter[str] = Counter()
        self._arrivals = count()

    def join(self, entries: Sequence[Entry], terms: RequestContext) -> None:
        """Take a request in; `leave` ends it, whatever became of its entries."""
        self._asking[terms.fairness_key] += 1
        pace, place = self._pace(terms), self._clock
        for entry in entries:
            place += entry.tokens * pace
            run = self._run(entry, place)
            heappush(self._heap, (min(place, run.at), run.number, next(self._arrivals), entry))
            self._count(entry, 1)

    def _run(self, entry: Entry, place: float) -> "Run":
        """Where it stands: with others that wait for the same prompt, or at its own place."""
        run = self._runs.get(entry.prompt)
        if not run or run.tokens + entry.own > TOGETHER:
            run = self._runs[entry.prompt] = Run(place, next(self._arrivals), len(entry.prompt))
        run.tokens += entry.own
        return run

    def leave(self, entries: Sequence[Entry], terms: RequestContext) -> int:
        """Nobody waits for these any more; how many of them had not been taken."""
        self._asking[terms.fairness_key] -= 1
        if not self._asking[terms.fairness_key]:
            del self._asking[terms.fairness_key]
        left = [entry for entry in entries if not entry.taken]
        for entry in left:
            self._take(entry)
        if 2 * self.items < len(self._heap):
            self._heap = [placed for placed in self._heap if not placed[-1].taken]
            heapify(self._heap)
        return len(left)

    def first(self) -> Entry | None:
        """Who is served next."""
        while self._heap and self._heap[0][-1].taken:
            heappop(self._heap)
        return self._heap[0][-1] if self._heap else None

    def pop(self) -> Entry:
        """Take the one who is next."""
        if self.first() is None:
            raise IndexError("nobody is in line")
        place, _, _, entry = heappop(self._heap)
        self._clock = max(self._clock, place)
        self._take(entry)
        return entry

    def ahead(self, tokens: int, terms: RequestContext) -> int:
        """Tokens that would be served before the last of so many that came now."""
        place = self._clock + tokens * self._pace(terms, coming=1)
        return sum(entry.tokens for at, _, _, entry in self._heap if at < place and not entry.taken)

    def _pace(self, terms: RequestContext, *, coming: int = 0) -> float:
        return (self._asking[terms.fairness_key] + coming) / (URGENCY if terms.urgent else 1)

    def _take(self, entry: Entry) -> None:
        entry.taken = True
        self._count(entry, -1)

    def _count(self, entry: Entry, more: int) -> None:
        alone = self._waiting[entry.prompt] == max(0, -more)
        self._waiting[entry.prompt] += more
        if not self._waiting[entry.prompt]:
            del self._waiting[entry.prompt], self._runs[entry.prompt]
        self.items += more
        self.tokens += more * entry.tokens
        self.fresh += more * (entry.tokens if alone else entry.own)


def next_batch(line: Line, share: int, budget: int) -> list[Entry]:
    """Take entries in order until their new tokens fill a share; the first always fits.

    Answers to the last prompt may go on as far as the whole budget does. A batch is for one device: while
    models change, entries for the old and the new engine stay apart.
    """
    batch: list[Entry] = []
    trie = Trie()
    now = time.monotonic()
    while entry := line.first():
        ids = entry.job.encoded.ids
        if entry.until < now:
            line.pop().settle(Overloaded("its time is over", code="deadline_exceeded"), now)
            continue
        if batch:
            room = budget if entry.prompt == batch[-1].prompt else share
            if entry.device is not batch[0].device or trie.size + trie.cost(ids) > room:
                break
        trie.add(ids)
        batch.append(line.pop())
    return batch
