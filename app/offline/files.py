"""Rows as files: lines of JSON while a run goes on, and parquet made of them at its end."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from app.errors import DataError

SUFFIXES = (".jsonl", ".parquet")
ROWS = 1024
SAID = (date, time, Decimal, UUID)


def line(row: Mapping[str, Any]) -> bytes:
    """A row as a line; DataError where it holds what JSON cannot say."""
    try:
        return _line(row, _said)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be written as JSON: {error}") from error


def bad_line(place: str, reason: str, row: Any) -> bytes:
    """A bad row, where it stood and why it is bad."""
    return _line({"place": place, "reason": reason, "row": row}, repr)


def to_parquet(lines: Path, out: Path) -> None:
    """The same rows as parquet; a column has the one type that holds all of its values."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = pa.schema([])
        for rows in _chunks(lines):
            schema = pa.unify_schemas([schema, _schema(rows)], promote_options="permissive")
        schema = pa.schema([one.with_type(pa.string()) if one.type == pa.null() else one for one in schema])
        with parquet.ParquetWriter(out, schema) as writer:
            for rows in _chunks(lines):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"no parquet can hold these rows ({reason}); {lines} does, as JSONL") from error


def _chunks(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open("rb") as stream:
        while some := [json.loads(one) for one in islice(stream, ROWS)]:
            yield some


def _schema(rows: list[dict[str, Any]]) -> Any:
    """Every column of some rows, with the type of its values."""
    import pyarrow as pa

    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            found[name] = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise pa.ArrowInvalid(f"column {name!r}: {error}") from error
    return pa.schema(found)


def _line(row: Mapping[str, Any], otherwise: Callable[[Any], str]) -> bytes:
    """Half a surrogate pair, which UTF-8 cannot say, becomes JSON's own escape."""
    text = json.dumps(row, ensure_ascii=False, default=otherwise)
    return text.encode(errors="backslashreplace") + b"\n"


def _said(value: Any) -> str:
    if isinstance(value, SAID):
        return str(value)
    raise TypeError(f"holds {type(value).__name__}, which JSON cannot say")
