"""Runs a task over a whole data set: reads, scores and writes it chunk by chunk, all three at the same time.

Memory use does not grow with the data. An interrupted run resumes where it stopped and writes the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from app.data import pairs
from app.errors import DataError, SparseRMError
from app.offline import files as file_formats
from app.offline.checkpoint import RunCheckpoint, RunFiles, RunWriter, open_writer
from app.offline.chunks import (
    DEFAULT_BATCH_TOKENS,
    Chunk,
    ChunkReader,
    ParsedRow,
    SourcePosition,
    prefetch,
)
from app.offline.scorers import RowResult, RowScorer, ScoringRequest
from app.offline.tasks import Task
from app.types import Progress

# With 16 batches in a chunk nearly all of them are full, and a killed run loses at most one chunk.
BATCHES_PER_CHUNK = 16
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class OfflineRunConfig:
    """Which task runs over which data set, and where its output goes.

    `strict` stops at the first bad row; `fresh` starts over instead of resuming.
    """

    task: Task
    request: ScoringRequest
    source: str
    output: Path
    column_prefix: str = ""
    strict: bool = False
    fresh: bool = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines the output besides the source and the scorer; infinite limits are None."""
        limits = {name: value if isfinite(value) else None for name, value in self.task.parameters.items()}
        return {"task": self.task.name, **asdict(self.request), "prefix": self.column_prefix, **limits}


def run_offline(
    config: OfflineRunConfig,
    scorer_context: AbstractContextManager[RowScorer],
    progress: Progress,
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> RunCheckpoint:
    """Start a run, or resume it; return its last checkpoint.

    The scorer is opened only after all checks have passed. A chunk holds about BATCHES_PER_CHUNK batches of
    `batch_tokens` tokens.
    """
    files = RunFiles(config.output)
    if completed := _clean_up_completed(config, files):
        return completed
    files.check_writable(config.source, fresh=config.fresh)
    source_size = pairs.get_source_size(config.source)
    with scorer_context as scorer:
        budget = {"SPARSERM_MAX_BATCH_TOKENS": batch_tokens}
        fingerprint = {**config.fingerprint, **scorer.fingerprint, **budget}
        with open_writer(files, fingerprint, fresh=config.fresh) as writer:
            min_characters = BATCHES_PER_CHUNK * batch_tokens * CHARACTERS_PER_TOKEN
            _process_chunks(config, scorer, writer, min_characters, source_size, progress)
            _raise_if_all_rows_bad(writer.checkpoint, files)
            if config.output.suffix == ".parquet":
                progress("parquet", 0.0)
            writer.finish()
            return writer.checkpoint


def _clean_up_completed(config: OfflineRunConfig, files: RunFiles) -> RunCheckpoint | None:
    """Clean up after a run that was killed with a complete output; return its checkpoint if it matches."""
    if not files.output_complete or config.fresh:
        return None
    fingerprint, checkpoint = files.read_checkpoint()
    files.clean_up_after_output()
    return checkpoint if config.fingerprint.items() <= fingerprint.items() else None


def _process_chunks(
    config: OfflineRunConfig, scorer: RowScorer, writer: RunWriter, min_characters: int,
    source_size: int | None, progress: Progress,
) -> None:  # fmt: skip
    """Score and write the chunks that are left, and report which share of the source is done."""

    def report() -> None:
        size = writer.checkpoint.position.size
        progress(config.task.name, size / source_size if source_size else 0.0)

    report()
    for chunk, results in _score_chunks(config, scorer, writer.checkpoint.position, min_characters):
        writer.write_chunk(*_encode_chunk(config, chunk, results), chunk.end)
        report()


def _score_chunks(
    config: OfflineRunConfig, scorer: RowScorer, start: SourcePosition, min_characters: int
) -> Iterator[tuple[Chunk, list[RowResult]]]:
    """Yield chunks and the results of their scorable rows.

    While the caller writes one chunk, a thread scores the next one, and another thread reads and prepares
    those after it.
    """
    chunks = ChunkReader(config.source, config.task, config.column_prefix).read_chunks(start, min_characters)
    prepared = prefetch(((chunk, scorer.prepare(chunk.scorable)) for chunk in chunks), scorer.prefetch)
    return prefetch((chunk, scorer.score(batches)) for chunk, batches in prepared)


def _encode_chunk(
    config: OfflineRunConfig, chunk: Chunk, results: Sequence[RowResult]
) -> tuple[list[bytes], list[bytes]]:
    """Return the output lines of a chunk's rows, and the lines of its bad rows."""
    remaining = iter(results)
    lines: list[bytes] = []
    bad_lines: list[bytes] = []
    for row in chunk.rows:
        try:
            lines += _encode_row(config, row, () if row.error else next(remaining))
        except DataError as error:
            if config.strict:
                raise DataError(f"{row.location}: {error}") from error
            bad_lines.append(file_formats.encode_bad_row(row.location, str(error), row.row))
    return lines, bad_lines


def _encode_row(config: OfflineRunConfig, row: ParsedRow, result: RowResult) -> list[bytes]:
    """Return a row with its new columns as a line; none if the task drops it; DataError for a bad row."""
    if row.error:
        raise DataError(row.error)
    if isinstance(result, SparseRMError):
        raise DataError(f"{result.param}: {result}" if result.param else str(result))
    columns = config.task.write(row.items, result)
    if columns is None:
        return []
    prefixed = {config.column_prefix + name: value for name, value in columns.items()}
    return [file_formats.encode_row({**row.row, **prefixed})]


def _raise_if_all_rows_bad(checkpoint: RunCheckpoint, files: RunFiles) -> None:
    """Raise DataError, and delete the run's files, if every row was bad."""
    if checkpoint.bad_rows and checkpoint.bad_rows == checkpoint.position.rows:
        with files.partial_bad_rows.open("rb") as stream:
            first = json.loads(stream.readline())
        files.delete_temporary()
        raise DataError(
            f"all {checkpoint.bad_rows:,} rows are bad; the first, {first['place']}: {first['reason']}"
        )
