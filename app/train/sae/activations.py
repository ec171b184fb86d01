"""Residual vectors of chats on disk: what an SAE is trained on.

Streamed through the serving path itself. The first token, whose residual is a huge outlier, is left out;
the last tokens of a turn, which rewards are often read from, count several times. The store grows by
whole passes, so an interrupted harvest goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.packing import pack
from app.backbone.tokenization import Text
from app.train.feature_cache import write_atomically
from app.types import EncodedItem, Item

PASS_TOKENS = 2048
FINAL_COPIES = 8


@dataclass(frozen=True, slots=True)
class HarvestProgress:
    """How far a harvest has come."""

    documents: int = 0
    rows: int = 0


class ActivationStore:
    """float16 rows in one flat file, and a note of how many are whole; one folder a choice of rows."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder = folder
        self.width = width
        self._file = folder / "activations.f16"
        self._note = folder / "progress.json"

    def progress(self) -> HarvestProgress:
        """Where to go on."""
        return (
            HarvestProgress(**json.loads(self._note.read_text()))
            if self._note.exists()
            else HarvestProgress()
        )

    def append(self, rows: Tensor, progress: HarvestProgress) -> None:
        """Add rows, then say so; rows that were written but not noted are overwritten next time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("r+b" if self._file.exists() else "wb") as stream:
            stream.seek((progress.rows - len(rows)) * self.width * 2)
            stream.truncate()
            stream.write(rows.to(torch.float16).numpy().tobytes())
        write_atomically(self._note, json.dumps(asdict(progress)))

    def rows(self) -> NDArray[np.float16]:
        """All whole rows, memory-mapped."""
        count = json.loads(self._note.read_text())["rows"]
        return np.memmap(self._file, np.float16, "r", shape=(count, self.width))


def harvest_activations(
    chats: Iterable[Item],
    *,
    backbone: Backbone,
    text: Text,
    layer: int,
    rows: int,
    store: ActivationStore,
    report: Callable[[int], None],
) -> None:
    """Run chats through the backbone until the store holds `rows`."""
    done = store.progress()
    report(done.rows)
    for documents, batch in _passes(islice(chats, done.documents, None), text):
        if done.rows >= rows:
            return
        found = _residuals(batch, backbone, layer)
        done = HarvestProgress(done.documents + documents, done.rows + len(found))
        store.append(found, done)
        report(done.rows)


def interleave(sources: Sequence[Iterable[Item]]) -> Iterator[Item]:
    """One exchange of each source in turn, until all are empty."""
    rounds = chain.from_iterable(zip_longest(*sources))
    return (exchange for exchange in rounds if exchange is not None)


def _residuals(batch: list[EncodedItem], backbone: Backbone, layer: int) -> Tensor:
    packed = pack([one.ids for one in batch])
    ends = [packed.rows(i, one.response_end - 1, one.response_end + 1) for i, one in enumerate(batch)]
    rows = np.concatenate([np.flatnonzero(packed.positions > 0), *ends * (FINAL_COPIES - 1)])
    return backbone.residuals(packed, {layer: rows})[layer].at(rows).cpu().clamp(-65504, 65504)


def _passes(chats: Iterable[Item], text: Text) -> Iterator[tuple[int, list[EncodedItem]]]:
    batch: list[EncodedItem] = []
    size = 0
    for encoded in (text.encode([chat])[0] for chat in chats):
        batch.append(encoded)
        size += len(encoded.ids)
        if size >= PASS_TOKENS:
            yield len(batch), batch
            batch, size = [], 0
    if batch:
        yield len(batch), batch
