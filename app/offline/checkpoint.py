"""What a run has written, and a checkpoint that says how much of it counts.

Rows go to OUT.part, bad ones to their own, then the checkpoint is replaced; what stands beyond it when a run
is killed is cut off by the next. OUT appears at the end, whole.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from app.errors import DataError
from app.offline import files as sheets
from app.offline.chunks import Reach
from app.offline.scorers import Facts


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a run is: into the source, rows kept and bad, and bytes of both files."""

    reach: Reach = field(default_factory=Reach)
    kept: int = 0
    bad: int = 0
    kept_bytes: int = 0
    bad_bytes: int = 0

    @property
    def dropped(self) -> int:
        """Rows that were judged and left out."""
        return self.reach.rows - self.kept - self.bad


class Files:
    """Where a run's files lie: all beside its output."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.bad = out.with_suffix(".bad.jsonl")
        self.part = out.with_name(f"{out.name}.part")
        self.bad_part = out.with_name(f"{self.bad.name}.part")
        self.checkpoint = out.with_name(f"{out.name}.checkpoint")
        self.scratch = out.with_name(f"{out.name}.scratch")

    @property
    def placed(self) -> bool:
        """Whether a run was killed when its output was in place, and only left its traces."""
        return self.checkpoint.exists() and self.out.exists() and not self.part.exists()

    def refuse(self, source: str, *, fresh: bool) -> None:
        """Overwrite nothing that is finished, and nothing that is read."""
        if self.out.suffix not in sheets.SUFFIXES:
            raise DataError(f"{self.out}: the output must end in {' or '.join(sheets.SUFFIXES)}")
        if not self.out.parent.is_dir():
            raise DataError(f"no folder {self.out.parent}")
        if Path(source).resolve() in {self.out.resolve(), self.bad.resolve()}:
            raise DataError(f"{source} would be overwritten; choose another name for the output")
        if self.out.exists() and not self.checkpoint.exists() and not fresh:
            raise DataError(f"{self.out} is already there; choose another name, or start over with --fresh")

    def noted(self) -> tuple[Facts, Mark]:
        """What the checkpoint says."""
        found = json.loads(self.checkpoint.read_text())
        mark = found["mark"]
        return found["facts"], Mark(**{**mark, "reach": Reach(**mark["reach"])})

    def settle(self) -> None:
        """Once the output is in its place: the bad rows beside it, and no traces. Can be repeated."""
        if self.bad_part.exists() and self.bad_part.stat().st_size:
            self.bad_part.replace(self.bad)
        self.forget()

    def forget(self) -> None:
        """Leave nothing but what is finished."""
        for one in (self.part, self.bad_part, self.scratch, self.checkpoint):
            one.unlink(missing_ok=True)


class Ledger:
    """The open files of a run; `mark` is how far it is."""

    def __init__(self, files: Files, facts: Facts, kept: IO[bytes], bad: IO[bytes]) -> None:
        self.mark = Mark()
        self._files = files
        self._facts = facts
        self._kept, self._bad = kept, bad

    def resume(self) -> None:
        """Go on where a run of the same facts was cut; what it did not note is cut off."""
        if self._files.checkpoint.exists():
            facts, self.mark = self._files.noted()
            self._compare(facts)
        for stream, length in ((self._kept, self.mark.kept_bytes), (self._bad, self.mark.bad_bytes)):
            if os.fstat(stream.fileno()).st_size < length:
                raise DataError(f"{stream.name} is shorter than it was; start over with --fresh")
            stream.truncate(length)
            stream.seek(length)
        self._note()

    def add(self, kept: Sequence[bytes], bad: Sequence[bytes], reach: Reach) -> None:
        """Write the rows of a window, then say so."""
        for stream, lines in ((self._kept, kept), (self._bad, bad)):
            stream.writelines(lines)
            _sync(stream)
        before = self.mark
        counts = before.kept + len(kept), before.bad + len(bad)
        self.mark = Mark(reach, *counts, self._kept.tell(), self._bad.tell())
        self._note()

    def finish(self) -> None:
        """Put the output in its place."""
        if not self.mark.bad:
            self._files.bad.unlink(missing_ok=True)
        if self._files.out.suffix == ".parquet":
            sheets.to_parquet(self._files.part, self._files.scratch)
            self._files.scratch.replace(self._files.out)
        else:
            self._files.part.replace(self._files.out)
        self._files.settle()

    def _compare(self, facts: Facts) -> None:
        ours = json.loads(json.dumps(self._facts))
        for name in [*facts, *ours]:
            before, now = facts.get(name), ours.get(name)
            if before != now:
                raise DataError(
                    f"{self._files.out} was begun with another {name} ({before}; now {now}); "
                    "go on with that one, or start over with --fresh"
                )

    def _note(self) -> None:
        with self._files.scratch.open("wb") as stream:
            stream.write(json.dumps({"facts": dict(self._facts), "mark": asdict(self.mark)}).encode())
            _sync(stream)
        self._files.scratch.replace(self._files.checkpoint)


@contextmanager
def opened(files: Files, facts: Facts, *, fresh: bool) -> Iterator[Ledger]:
    """Begin a run, or go on with one of the same facts; nobody else may write it meanwhile."""
    with files.part.open("ab") as kept, files.bad_part.open("ab") as bad:
        for stream, path in ((kept, files.part), (bad, files.bad_part)):
            _lock(stream, path, files.out)
        if fresh:
            files.checkpoint.unlink(missing_ok=True)
        ledger = Ledger(files, facts, kept, bad)
        ledger.resume()
        try:
            yield ledger
        finally:
            if ledger.mark == Mark():
                files.forget()


def _lock(stream: IO[bytes], path: Path, out: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another run is writing {out}") from error
    except OSError:
        pass  # some network file systems have no locks
    if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        raise DataError(f"another run has just finished {out}")


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
