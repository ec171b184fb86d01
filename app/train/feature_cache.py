"""Stores intermediate results on disk: small tensors in an SQLite file, and texts in files of their own.

Every write is atomic, so a killed run loses only what it was computing.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

Tensors = Mapping[str, Tensor]
KEYS_PER_QUERY = 500
"""Keys looked up by one statement; SQLite limits the number of its parameters."""
LOCK_TIMEOUT_S = 60


def write_atomically(file: Path, text: str) -> None:
    """Write a file completely, then move it to its place; a killed write leaves the old file untouched."""
    scratch = file.with_name(f"{file.name}.part")
    with scratch.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


class TensorCache:
    """Named tensors by (kind, key): the kind identifies how they were computed, the key from which input."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def put(self, rows: Iterable[tuple[str, str, Tensors]]) -> None:
        """Store (kind, key, tensors) rows, all or none."""
        packed = [(kind, key, save(dict(tensors))) for kind, key, tensors in rows]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO tensors VALUES (?, ?, ?)", packed)

    def get(self, kind: str, keys: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Return the stored rows of a kind, by key; keys that are not stored are left out."""
        key_list = list(keys)
        rows: dict[str, dict[str, Tensor]] = {}
        with self._open() as connection:
            for start in range(0, len(key_list), KEYS_PER_QUERY):
                chunk = key_list[start : start + KEYS_PER_QUERY]
                placeholders = ",".join("?" * len(chunk))
                query = f"SELECT key, tensors FROM tensors WHERE kind = ? AND key IN ({placeholders})"  # noqa: S608 # inserts question marks only
                rows |= {key: load(blob) for key, blob in connection.execute(query, (kind, *chunk))}
        return rows

    def clear(self) -> None:
        """Delete the cache file."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=LOCK_TIMEOUT_S)) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS tensors "
                "(kind TEXT, key TEXT, tensors BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID"
            )
            with connection:
                yield connection
