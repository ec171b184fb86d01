"""A whole data set through a task: read, score and write beside each other, window by window.

Memory does not grow with the data. A killed run goes on where it was and ends in the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from app.data import pairs
from app.errors import DataError, SparseRMError
from app.offline import checkpoint
from app.offline import files as sheets
from app.offline.checkpoint import Files, Ledger, Mark
from app.offline.chunks import PASS_TOKENS, Line, Reach, Reader, Window, ahead
from app.offline.scorers import Found, Judge, Question
from app.offline.tasks import Task

PASSES = 16  # nearly all of them are full, and no more is lost when a run is killed
CHARACTERS_PER_TOKEN = 4
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done to which data set, and what comes of it."""

    task: Task
    question: Question
    source: str
    out: Path
    prefix: str = ""
    strict: bool = False
    fresh: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What makes two runs the same, beside who judges."""
        limits = {name: value if isfinite(value) else None for name, value in self.task.choices.items()}
        return {"task": self.task.name, **asdict(self.question), "prefix": self.prefix, **limits}


def run(
    order: Order, call: AbstractContextManager[Judge], report: Report, *, pass_tokens: int = PASS_TOKENS
) -> Mark:
    """Do it, or go on with it; the judge is only called when nothing stands against it.

    A window holds about PASSES passes of so many tokens.
    """
    files = Files(order.out)
    if files.placed and not order.fresh:
        facts, mark = files.noted()
        files.settle()
        if order.facts.items() <= facts.items():
            return mark
    files.refuse(order.source, fresh=order.fresh)
    extent = pairs.extent(order.source)
    size = PASSES * pass_tokens * CHARACTERS_PER_TOKEN
    with call as judge:
        facts = {**order.facts, **judge.facts, "SPARSERM_MAX_BATCH_TOKENS": pass_tokens}
        with checkpoint.opened(files, facts, fresh=order.fresh) as book:
            report(order.task.name, book.mark.reach.size / extent if extent else 0.0)
            for window, found in _judged(order, judge, book.mark.reach, size):
                book.add(*_lines(order, window, found), window.reach)
                report(order.task.name, book.mark.reach.size / extent if extent else 0.0)
            _check(book, files)
            if order.out.suffix == ".parquet":
                report("parquet", 0.0)
            book.finish()
            return book.mark


def _judged(order: Order, judge: Judge, after: Reach, size: int) -> Iterator[tuple[Window, list[Found]]]:
    """Windows with what is found in them; while one is written, the next is scored, and more are read."""
    windows = Reader(order.source, order.task, order.prefix).windows(after, size)
    prepared = ahead(((window, judge.prepare(window.items)) for window in windows), judge.depth)
    return ahead((window, judge.answer(ready)) for window, ready in prepared)


def _lines(order: Order, window: Window, found: Sequence[Found]) -> tuple[list[bytes], list[bytes]]:
    """A window's rows with their new columns, and its bad ones with their reasons."""
    answers = iter(found)
    kept: list[bytes] = []
    bad: list[bytes] = []
    for line in window.lines:
        try:
            kept += _written(order, line, () if line.problem else next(answers))
        except DataError as error:
            if order.strict:
                raise DataError(f"{line.place}: {error}") from error
            bad.append(sheets.bad_line(line.place, str(error), line.row))
    return kept, bad


def _written(order: Order, line: Line, found: Found) -> list[bytes]:
    """A row with its new columns as a line; none if the task drops it."""
    if line.problem:
        raise DataError(line.problem)
    if isinstance(found, SparseRMError):
        raise DataError(f"{found.param}: {found}" if found.param else str(found))
    columns = order.task.write(line.item, found)
    if columns is None:
        return []
    named = {order.prefix + name: value for name, value in columns.items()}
    return [sheets.line({**line.row, **named})]


def _check(book: Ledger, files: Files) -> None:
    """Not one good row is no result but a mistake."""
    if book.mark.bad and book.mark.bad == book.mark.reach.rows:
        with files.bad_part.open("rb") as stream:
            first = json.loads(stream.readline())
        files.forget()
        raise DataError(
            f"not one of {book.mark.bad:,} rows could be used; the first, {first['place']}: {first['reason']}"
        )
