"""Residual vectors of chats on disk: what an SAE is trained on.

Streamed through the serving path itself. The first token, whose residual is a huge outlier, is left out.
The store grows by whole passes, so an interrupted harvest goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.model.backbone import Backbone
from app.model.packing import pack
from app.model.text import Text
from app.types import Encoded, Exchange

PASS_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a harvest has come."""

    backbone: str
    layer: int
    documents: int = 0
    rows: int = 0


class Store:
    """float16 rows in one flat file, and a note of how many of them are whole."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder = folder
        self.width = width
        self._file = folder / "activations.f16"
        self._note = folder / "progress.json"

    def progress(self, backbone: str, layer: int) -> Progress:
        """Where to go on; a store of another backbone or layer starts over."""
        if self._note.exists():
            found = Progress(**json.loads(self._note.read_text()))
            if (found.backbone, found.layer) == (backbone, layer):
                return found
        return Progress(backbone, layer)

    def append(self, rows: Tensor, progress: Progress) -> None:
        """Add rows, then say so; rows that were written but not noted are overwritten next time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("r+b" if self._file.exists() else "wb") as stream:
            stream.seek((progress.rows - len(rows)) * self.width * 2)
            stream.truncate()
            stream.write(rows.to(torch.float16).numpy().tobytes())
        scratch = self._note.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(progress)))
        scratch.replace(self._note)

    def rows(self) -> NDArray[np.float16]:
        """All whole rows, memory-mapped."""
        count = json.loads(self._note.read_text())["rows"]
        return np.memmap(self._file, np.float16, "r", shape=(count, self.width))


def harvest(
    chats: Iterable[Exchange],
    *,
    backbone: Backbone,
    text: Text,
    layer: int,
    tokens: int,
    store: Store,
    report: Callable[[int], None],
) -> None:
    """Run chats through the backbone until the store holds `tokens` rows."""
    done = store.progress(backbone.digest, layer)
    report(done.rows)
    for documents, batch in _passes(islice(chats, done.documents, None), text):
        if done.rows >= tokens:
            return
        rows = _residuals(batch, backbone, layer)
        done = Progress(done.backbone, layer, done.documents + documents, done.rows + len(rows))
        store.append(rows, done)
        report(done.rows)


def _residuals(batch: list[Encoded], backbone: Backbone, layer: int) -> Tensor:
    packed = pack([one.ids for one in batch])
    kept = torch.from_numpy(packed.positions > 0)
    return backbone.residuals(packed, [layer])[layer].cpu()[kept].clamp(-65504, 65504)


def _passes(chats: Iterable[Exchange], text: Text) -> Iterator[tuple[int, list[Encoded]]]:
    batch: list[Encoded] = []
    size = 0
    for encoded in (text.encode([chat])[0] for chat in chats):
        batch.append(encoded)
        size += len(encoded.ids)
        if size >= PASS_TOKENS:
            yield len(batch), batch
            batch, size = [], 0
    if batch:
        yield len(batch), batch
