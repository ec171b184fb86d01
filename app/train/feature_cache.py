"""What took long to find, kept: small tensors under a key, in one SQLite file, or a text in its own file.

Every write is whole or did not happen, so a killed run loses only what it was computing.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

Tensors = Mapping[str, Tensor]
AT_ONCE = 500


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole, in the place of the one before."""
    scratch = file.with_name(f"{file.name}.part")
    with scratch.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


class TensorCache:
    """Tensors by (kind, item); the kind says how they were made, the item of what."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def put(self, rows: Iterable[tuple[str, str, Tensors]]) -> None:
        """Keep (kind, item, tensors) rows, all or none."""
        packed = [(kind, item, save(dict(tensors))) for kind, item, tensors in rows]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO shelf VALUES (?, ?, ?)", packed)

    def get(self, kind: str, items: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """The rows of a kind that are here, of those asked for."""
        wanted = list(items)
        found: dict[str, dict[str, Tensor]] = {}
        with self._open() as connection:
            for start in range(0, len(wanted), AT_ONCE):
                some = wanted[start : start + AT_ONCE]
                holes = ",".join("?" * len(some))
                query = f"SELECT item, tensors FROM shelf WHERE kind = ? AND item IN ({holes})"  # noqa: S608 # only question marks are put in
                found |= {item: load(blob) for item, blob in connection.execute(query, (kind, *some))}
        return found

    def clear(self) -> None:
        """Forget everything: what it was for is done."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=60)) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS shelf "
                "(kind TEXT, item TEXT, tensors BLOB, PRIMARY KEY (kind, item)) WITHOUT ROWID"
            )
            with connection:
                yield connection
