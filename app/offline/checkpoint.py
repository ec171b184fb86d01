"""The output files of an offline run, and the checkpoint that records how much of them is complete.

Rows go to OUT.part, bad rows to a .part file of their own; after each chunk the checkpoint is replaced
atomically. When an interrupted run is resumed, these files are truncated to the length in the checkpoint. OUT
is created when the run is complete.
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
from app.offline import files as file_formats
from app.offline.chunks import SourcePosition
from app.offline.scorers import Fingerprint


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """How far a run is: its position in the source, and the rows and bytes it has written."""

    position: SourcePosition = field(default_factory=SourcePosition)
    written_rows: int = 0
    bad_rows: int = 0
    written_bytes: int = 0
    bad_bytes: int = 0

    @property
    def dropped_rows(self) -> int:
        """Rows that were scored and left out by the task."""
        return self.position.rows - self.written_rows - self.bad_rows


class RunFiles:
    """The paths of a run's files; all are in the folder of the output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.bad_rows = output.with_suffix(".bad.jsonl")
        self.partial_output = output.with_name(f"{output.name}.part")
        self.partial_bad_rows = output.with_name(f"{self.bad_rows.name}.part")
        self.checkpoint = output.with_name(f"{output.name}.checkpoint")
        self.scratch = output.with_name(f"{output.name}.scratch")

    @property
    def output_complete(self) -> bool:
        """Whether a run was killed after it had put the output in place but before it had cleaned up."""
        return self.checkpoint.exists() and self.output.exists() and not self.partial_output.exists()

    def check_writable(self, source: str, *, fresh: bool) -> None:
        """Raise DataError if the run would overwrite a finished output or its own input."""
        if self.output.suffix not in file_formats.OUTPUT_SUFFIXES:
            suffixes = " or ".join(file_formats.OUTPUT_SUFFIXES)
            raise DataError(f"{self.output}: the output must end in {suffixes}")
        if not self.output.parent.is_dir():
            raise DataError(f"no folder {self.output.parent}")
        if Path(source).resolve() in {self.output.resolve(), self.bad_rows.resolve()}:
            raise DataError(f"{source} would be overwritten; choose another name for the output")
        if self.output.exists() and not self.checkpoint.exists() and not fresh:
            raise DataError(f"{self.output} already exists; choose another name, or start over with --fresh")

    def read_checkpoint(self) -> tuple[Fingerprint, RunCheckpoint]:
        """Return the fingerprint of the run that wrote the checkpoint, and the checkpoint."""
        content = json.loads(self.checkpoint.read_text())
        fields = content["checkpoint"]
        position = SourcePosition(**fields["position"])
        return content["fingerprint"], RunCheckpoint(**{**fields, "position": position})

    def clean_up_after_output(self) -> None:
        """Put the bad rows beside the complete output, and delete all temporary files. Can be repeated."""
        if self.partial_bad_rows.exists() and self.partial_bad_rows.stat().st_size:
            self.partial_bad_rows.replace(self.bad_rows)
        self.delete_temporary()

    def delete_temporary(self) -> None:
        """Delete every file of the run but the output and its bad rows."""
        for path in (self.partial_output, self.partial_bad_rows, self.scratch, self.checkpoint):
            path.unlink(missing_ok=True)


class RunWriter:
    """The open files of a run; `checkpoint` is how far it is."""

    def __init__(
        self, files: RunFiles, fingerprint: Fingerprint, rows: IO[bytes], bad_rows: IO[bytes]
    ) -> None:
        self.checkpoint = RunCheckpoint()
        self._files = files
        self._fingerprint = fingerprint
        self._rows = rows
        self._bad_rows = bad_rows

    def resume(self) -> None:
        """Continue after the last checkpoint of a run with the same fingerprint; truncate the files to it."""
        if self._files.checkpoint.exists():
            fingerprint, self.checkpoint = self._files.read_checkpoint()
            self._check_fingerprint(fingerprint)
        for stream, length in (
            (self._rows, self.checkpoint.written_bytes),
            (self._bad_rows, self.checkpoint.bad_bytes),
        ):
            if os.fstat(stream.fileno()).st_size < length:
                raise DataError(f"{stream.name} is shorter than its checkpoint says; start over with --fresh")
            stream.truncate(length)
            stream.seek(length)
        self._write_checkpoint()

    def write_chunk(self, rows: Sequence[bytes], bad_rows: Sequence[bytes], end: SourcePosition) -> None:
        """Write the lines of a chunk that ends at a position, then the checkpoint."""
        for stream, lines in ((self._rows, rows), (self._bad_rows, bad_rows)):
            stream.writelines(lines)
            _sync(stream)
        self.checkpoint = RunCheckpoint(
            end,
            self.checkpoint.written_rows + len(rows),
            self.checkpoint.bad_rows + len(bad_rows),
            self._rows.tell(),
            self._bad_rows.tell(),
        )
        self._write_checkpoint()

    def finish(self) -> None:
        """Put the complete output in place."""
        files = self._files
        if not self.checkpoint.bad_rows:
            files.bad_rows.unlink(missing_ok=True)
        if files.output.suffix == ".parquet":
            file_formats.convert_to_parquet(files.partial_output, files.scratch)
            files.scratch.replace(files.output)
        else:
            files.partial_output.replace(files.output)
        files.clean_up_after_output()

    def _check_fingerprint(self, earlier: Fingerprint) -> None:
        current = json.loads(json.dumps(self._fingerprint))
        for name in [*earlier, *current]:
            before, now = earlier.get(name), current.get(name)
            if before != now:
                raise DataError(
                    f"{self._files.output} was begun with another {name} ({before}; now {now}); "
                    "run it with the earlier one again, or start over with --fresh"
                )

    def _write_checkpoint(self) -> None:
        content = {"fingerprint": dict(self._fingerprint), "checkpoint": asdict(self.checkpoint)}
        with self._files.scratch.open("wb") as stream:
            stream.write(json.dumps(content).encode())
            _sync(stream)
        self._files.scratch.replace(self._files.checkpoint)


@contextmanager
def open_writer(files: RunFiles, fingerprint: Fingerprint, *, fresh: bool) -> Iterator[RunWriter]:
    """Start a run, or resume one with the same fingerprint; the files are locked until the block ends.

    A run that ends before its first chunk was written leaves no files.
    """
    with files.partial_output.open("ab") as rows, files.partial_bad_rows.open("ab") as bad_rows:
        for stream, path in ((rows, files.partial_output), (bad_rows, files.partial_bad_rows)):
            _lock(stream, path, files.output)
        if fresh:
            files.checkpoint.unlink(missing_ok=True)
        writer = RunWriter(files, fingerprint, rows, bad_rows)
        writer.resume()
        try:
            yield writer
        finally:
            if writer.checkpoint == RunCheckpoint():
                files.delete_temporary()


def _lock(stream: IO[bytes], path: Path, output: Path) -> None:
    """Lock a file; DataError if another run holds it, or has renamed or deleted it since it was opened."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another run is writing {output}; wait until it ends") from error
    except OSError:
        pass  # some network file systems have no locks
    if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        raise DataError(f"another run has just finished {output}")


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
