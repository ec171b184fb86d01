"""Chunks of a data set end where the rows alone determine, and prefetching changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import DataError
from app.offline.chunks import ChunkReader, SourcePosition, prefetch
from app.offline.tasks import SCORE
from tests.support import offline_runs


def test_chunks_depend_on_the_rows_alone(tmp_path: Path) -> None:
    source = str(
        offline_runs.write_rows(
            tmp_path / "in.jsonl", offline_runs.insert_bad_rows(offline_runs.make_response_rows(100))
        )
    )
    chunks = list(ChunkReader(source, SCORE).read_chunks(SourcePosition(), 800))
    assert len(chunks) > 5
    for index, chunk in enumerate(chunks):
        assert list(ChunkReader(source, SCORE).read_chunks(chunk.end, 800)) == chunks[index + 1 :]
    assert chunks[-1].end.size == Path(source).stat().st_size


def test_prefetching_keeps_the_order_and_raises_after_the_items_before() -> None:
    def failing() -> Any:
        yield from (1, 2)
        raise DataError("over")

    assert list(prefetch(iter(range(50)))) == list(range(50))
    received: list[int] = []
    with pytest.raises(DataError, match="over"):
        received.extend(prefetch(failing()))
    items = prefetch(failing())
    assert next(items) == 1
