"""The formats of the output: lines of JSON while a run goes on, and parquet written from them at its end."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from app.errors import DataError

OUTPUT_SUFFIXES = (".jsonl", ".parquet")
# Rows that are converted to parquet together, and so share a row group.
PARQUET_GROUP_ROWS = 1024
# Types in parquet and hub data sets that JSON lacks, and that are written as text without loss.
STRINGIFIED_TYPES = (date, time, Decimal, UUID)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON; DataError if it holds a value that JSON cannot represent."""
    try:
        return _encode(row, _stringify)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be written as JSON: {error}") from error


def encode_bad_row(location: str, reason: str, row: Any) -> bytes:
    """Return the line of the file of bad rows: location, reason and content."""
    return _encode({"place": location, "reason": reason, "row": row}, repr)


def convert_to_parquet(jsonl: Path, output: Path) -> None:
    """Write the rows of a JSONL file as parquet; each column gets the one type that holds all its values."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = pa.schema([])
        for rows in _read_groups(jsonl):
            schema = pa.unify_schemas([schema, _infer_schema(rows)], promote_options="permissive")
        schema = pa.schema(
            [field.with_type(pa.string()) if field.type == pa.null() else field for field in schema]
        )
        with parquet.ParquetWriter(output, schema) as writer:
            for rows in _read_groups(jsonl):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"these rows cannot be written as parquet ({reason}); {jsonl} has them as JSONL"
        ) from error


def _read_groups(jsonl: Path) -> Iterator[list[dict[str, Any]]]:
    with jsonl.open("rb") as stream:
        while rows := [json.loads(line) for line in islice(stream, PARQUET_GROUP_ROWS)]:
            yield rows


def _infer_schema(rows: list[dict[str, Any]]) -> Any:
    """Return the schema of some rows: every column that one of them has, with the type of its values."""
    import pyarrow as pa

    types = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            types[name] = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise pa.ArrowInvalid(f"column {name!r}: {error}") from error
    return pa.schema(types)


def _encode(row: Mapping[str, Any], default: Callable[[Any], str]) -> bytes:
    """Return a line of JSON; a lone surrogate, which UTF-8 cannot encode, is written as a JSON escape."""
    text = json.dumps(row, ensure_ascii=False, default=default)
    return text.encode(errors="backslashreplace") + b"\n"


def _stringify(value: Any) -> str:
    if isinstance(value, STRINGIFIED_TYPES):
        return str(value)
    raise TypeError(f"holds {type(value).__name__}, which JSON cannot represent")
