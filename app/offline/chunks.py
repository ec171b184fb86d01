"""Reads a data set in chunks: rows that are read, scored and written together.

Where a chunk ends depends on the rows alone. So a run that is resumed at the end of a chunk computes the same
batches, and the same numbers, as a run that was never interrupted.
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

# Ends a chunk whose rows have little text.
MAX_CHUNK_ROWS = 4096
# Tokens of a batch where SPARSERM_MAX_BATCH_TOKENS is not set.
DEFAULT_BATCH_TOKENS = 1024
EMPTY_DIGEST = hashlib.sha256().hexdigest()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row of the input: its location, its content, and its items or why it cannot be scored."""

    location: str
    row: Any
    items: RowItems = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """A position in a source: the rows before it, their size and their digest.

    The size is in the unit of `pairs.get_source_size`: bytes of a JSONL file, rows of any other source.
    """

    rows: int = 0
    size: int = 0
    sha256: str = EMPTY_DIGEST


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows, and the position in the source after the last of them."""

    rows: list[ParsedRow]
    end: SourcePosition

    @property
    def scorable(self) -> list[RowItems]:
        """The items of the rows that can be scored."""
        return [row.items for row in self.rows if row.error is None]


class ChunkReader:
    """Reads chunks of a source and parses their rows for a task.

    `column_prefix` is put before the names of the task's new columns; a row that already has such a column
    is bad.
    """

    def __init__(self, source: str, task: Task, column_prefix: str = "") -> None:
        self.source = source
        self._task = task
        self._new_columns = {column_prefix + name for name in task.columns}

    def read_chunks(self, start: SourcePosition, min_characters: int) -> Iterator[Chunk]:
        """Yield the chunks after a position; each but the last has at least `min_characters` of text.

        Raises DataError if the rows before the position have changed since they were read.
        """
        source = _PositionTracker(self.source)
        deque(islice(source, start.rows), maxlen=0)
        if source.position != start:
            raise DataError(
                f"the first {start.rows:,} rows of {self.source} have changed since this run began; "
                "restore them, or start over with --fresh"
            )
        rows: list[ParsedRow] = []
        characters = 0
        for location, raw in source:
            rows.append(self._parse(location, raw))
            characters += _count_characters(rows[-1].items)
            if characters >= min_characters or len(rows) >= MAX_CHUNK_ROWS:
                yield Chunk(rows, source.position)
                rows, characters = [], 0
        if rows:
            yield Chunk(rows, source.position)

    def _parse(self, location: str, raw: bytes | Row) -> ParsedRow:
        row: Any = raw.decode(errors="replace").strip() if isinstance(raw, bytes) else raw
        try:
            row = pairs.parse_row(raw, location)
            return ParsedRow(location, row, self._read_items(row, location))
        except DataError as error:
            return ParsedRow(location, row, error=str(error).removeprefix(f"{location}: "))

    def _read_items(self, row: Row, location: str) -> RowItems:
        existing = sorted(self._new_columns & row.keys())
        if existing:
            raise DataError(
                f"{location}: already has {', '.join(existing)}; name the new columns by --prefix"
            )
        return self._task.read(row, location)


def prefetch(items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """Yield the same items; a thread computes up to `depth` of them before they are requested.

    A consumer that stops early waits for the item being computed, because that may use what the consumer
    releases next, such as an open file. After a KeyboardInterrupt it does not wait.
    """
    executor, wait = ThreadPoolExecutor(1), True
    try:
        pending = deque(executor.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(executor.submit(next, items, None))
            yield item
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        executor.shutdown(wait=wait, cancel_futures=True)


class _PositionTracker:
    """Iterates over the raw rows of a source with their locations; `position` is after the last one."""

    def __init__(self, source: str) -> None:
        self._rows = self._size = 0
        self._sha256 = hashlib.sha256()
        self._iterator = self._iterate(source)

    @property
    def position(self) -> SourcePosition:
        """The position after the rows that have been yielded."""
        return SourcePosition(self._rows, self._size, self._sha256.hexdigest())

    def __iter__(self) -> Iterator[tuple[str, bytes | Row]]:
        return self._iterator

    def _iterate(self, source: str) -> Iterator[tuple[str, bytes | Row]]:
        for location, raw in pairs.iter_rows(source):
            self._rows += 1
            self._size += len(raw) if isinstance(raw, bytes) else 1
            content = raw.strip() if isinstance(raw, bytes) else repr(raw).encode()
            self._sha256.update(content + b"\n")
            yield location, raw


def _count_characters(items: RowItems) -> int:
    prompt = sum(len(message.content) for message in items[0].messages) if items else 0
    return prompt + sum(len(item.response) for item in items)
