"""Windows of a data set: they end where the rows say, and looking ahead changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import DataError
from app.offline.chunks import Reach, Reader, ahead
from app.offline.tasks import SCORE
from tests.support import offline_runs


def test_windows_depend_on_the_rows_alone(tmp_path: Path) -> None:
    source = str(offline_runs.write(tmp_path / "in.jsonl", offline_runs.mixed(offline_runs.responses(100))))
    windows = list(Reader(source, SCORE).windows(Reach(), 800))
    assert len(windows) > 5
    for at, window in enumerate(windows):
        assert list(Reader(source, SCORE).windows(window.reach, 800)) == windows[at + 1 :]
    assert windows[-1].reach.size == Path(source).stat().st_size


def test_looking_ahead_changes_nothing_and_fails_where_it_should() -> None:
    def failing() -> Any:
        yield from (1, 2)
        raise DataError("over")

    assert list(ahead(iter(range(50)))) == list(range(50))
    seen: list[int] = []
    with pytest.raises(DataError, match="over"):
        seen.extend(ahead(failing()))
    things = ahead(failing())
    assert next(things) == 1
