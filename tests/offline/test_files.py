"""Rows in parquet: they are read and written unchanged, and what a format cannot hold is an error."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyarrow import Table, parquet

from app.errors import DataError
from app.offline.tasks import SCORE
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import offline_runs
from tests.support.offline_runs import CLOSE


def test_parquet_input_and_output_keep_the_rows(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "kind": None if row["n"] % 2 else "odd",
            "votes": row["n"] if row["n"] < 50 else 0.5,
            "tags": [],
        }
        for row in offline_runs.make_response_rows(90)
    ]
    rows[80]["tags"] = ["late"]
    rows[85]["more"] = {"late": 1}
    offline_runs.write_rows(tmp_path / "in.jsonl", rows)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    offline_runs.run_task(engine, settings, SCORE, tmp_path / "in.jsonl.gz", tmp_path / "zipped.parquet")
    offline_runs.run_task(engine, settings, SCORE, tmp_path / "in.jsonl", tmp_path / "plain.jsonl")
    table = parquet.read_table(tmp_path / "zipped.parquet")
    rows_read = [{name: value for name, value in row.items() if name != "more"} for row in table.to_pylist()]
    assert table.to_pylist()[85]["more"] == {"late": 1}
    assert rows_read == [
        {k: v for k, v in row.items() if k != "more"}
        for row in offline_runs.read_rows(tmp_path / "plain.jsonl")
    ]
    parquet.write_table(table.drop_columns(["more"]), tmp_path / "again.parquet", row_group_size=7)
    offline_runs.run_task(
        engine,
        settings,
        SCORE,
        tmp_path / "again.parquet",
        tmp_path / "out.parquet",
        column_prefix="b_",
        batch_tokens=256,
    )
    again = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["b_reward"] for row in again] == pytest.approx([row["reward"] for row in again], abs=CLOSE)


def test_rows_that_parquet_cannot_hold_are_kept_as_jsonl(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    rows = [{**row, "mixed": "text" if row["n"] == 30 else 1} for row in offline_runs.make_response_rows(40)]
    with pytest.raises(DataError, match=r"column 'mixed': .*out.parquet.part has them as JSONL"):
        offline_runs.run_task(
            engine,
            settings,
            SCORE,
            offline_runs.write_rows(tmp_path / "in.jsonl", rows),
            tmp_path / "out.parquet",
        )
    assert [row["n"] for row in offline_runs.read_rows(tmp_path / "out.parquet.part")] == list(range(40))


def test_dates_become_text_and_bytes_are_refused(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    rows = [{**row, "at": datetime(2026, 1, 1, tzinfo=UTC)} for row in offline_runs.make_response_rows(3)]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "in.parquet")
    offline_runs.run_task(engine, settings, SCORE, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert offline_runs.read_rows(tmp_path / "out.jsonl")[0]["at"].startswith("2026-01-01 00:00:00")
    pictures = [
        {**row, "image": b"\x00" if row["n"] == 1 else None} for row in offline_runs.make_response_rows(3)
    ]
    parquet.write_table(Table.from_pylist(pictures), tmp_path / "pictures.parquet")
    offline_runs.run_task(engine, settings, SCORE, tmp_path / "pictures.parquet", tmp_path / "pictures.jsonl")
    (bad,) = offline_runs.read_rows(tmp_path / "pictures.bad.jsonl")
    assert (bad["place"], "holds bytes" in bad["reason"]) == ("pictures.parquet:2", True)
