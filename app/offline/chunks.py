"""A data set in windows: rows read together, scored together, and kept together.

Where a window ends depends on the rows alone. So a run that goes on at the end of a window computes the same
passes, and the same numbers, as one that was never cut.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from app.data import pairs
from app.errors import DataError
from app.offline.tasks import Row, RowItems, Task

MOST_ROWS, PASS_TOKENS = 4096, 1024
T = TypeVar("T")
NOTHING = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the input: where it stands, what it holds, and what is to be judged, or why nothing is."""

    place: str
    row: Any
    item: RowItems = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """How far into a source: rows, their size as `pairs.extent` counts it, and a digest of them all."""

    rows: int = 0
    size: int = 0
    digest: str = NOTHING


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows, and how far into the source they reach."""

    lines: list[Line]
    reach: Reach

    @property
    def items(self) -> list[RowItems]:
        """What is to be judged."""
        return [line.item for line in self.lines if line.problem is None]


class Reader:
    """Rows of a source, taken apart for a task; `prefix` stands before the names of its new columns."""

    def __init__(self, source: str, task: Task, prefix: str = "") -> None:
        self.source = source
        self._task = task
        self._columns = {prefix + name for name in task.columns}

    def windows(self, after: Reach, characters: int) -> Iterator[Window]:
        """The rows after those read before, about so many characters of conversation at a time."""
        tape = _Tape(self.source)
        deque(islice(tape, after.rows), maxlen=0)
        if tape.reach != after:
            raise DataError(
                f"the first {after.rows:,} rows of {self.source} are not those that this run began with; "
                "bring them back, or start over with --fresh"
            )
        lines: list[Line] = []
        held = 0
        for place, raw in tape:
            lines.append(self._line(place, raw))
            held += _characters(lines[-1].item)
            if held >= characters or len(lines) >= MOST_ROWS:
                yield Window(lines, tape.reach)
                lines, held = [], 0
        if lines:
            yield Window(lines, tape.reach)

    def _line(self, place: str, raw: bytes | Row) -> Line:
        row: Any = raw.decode(errors="replace").strip() if isinstance(raw, bytes) else raw
        try:
            row = pairs.parsed(raw, place)
            return Line(place, row, self._item(row, place))
        except DataError as error:
            return Line(place, row, problem=str(error).removeprefix(f"{place}: "))

    def _item(self, row: Row, place: str) -> RowItems:
        taken = sorted(self._columns & row.keys())
        if taken:
            raise DataError(f"{place}: already has {', '.join(taken)}; name the new columns by --prefix")
        return self._task.read(row, place)


def ahead(things: Iterator[T], depth: int = 1) -> Iterator[T]:
    """The same things, made by a thread of their own so many before they are used.

    Whoever stops early waits for the one being made, for it may use what is used next; not so who interrupts.
    """
    pool, patient = ThreadPoolExecutor(1), True
    try:
        coming = deque(pool.submit(next, things, None) for _ in range(depth))
        while (thing := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, things, None))
            yield thing
    except KeyboardInterrupt:
        patient = False
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)


class _Tape:
    """The rows of a source as they pass by, and how many have."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._rows = self._size = 0
        self._digest = hashlib.sha256()
        self._found = self._run()

    @property
    def reach(self) -> Reach:
        """How far it has run."""
        return Reach(self._rows, self._size, self._digest.hexdigest())

    def __iter__(self) -> Iterator[tuple[str, bytes | Row]]:
        return self._found

    def _run(self) -> Iterator[tuple[str, bytes | Row]]:
        for place, raw in pairs.rows(self._source):
            self._rows += 1
            self._size += len(raw) if isinstance(raw, bytes) else 1
            seen = raw.strip() if isinstance(raw, bytes) else repr(raw).encode()
            self._digest.update(seen + b"\n")
            yield place, raw


def _characters(item: RowItems) -> int:
    asked = sum(len(turn.content) for turn in item[0].messages) if item else 0
    return asked + sum(len(exchange.response) for exchange in item)
