"""Stores residual vectors of chats on disk, on which an SAE is trained.

They are computed by the same code as in serving. The first token of a text is left out, because its residual
is a huge outlier; the last tokens of a turn are stored several times, because rewards are often read from
them. The store grows by whole batches, so an interrupted harvest resumes after the last complete one.
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
from app.backbone.tokenization import ChatTokenizer
from app.train.feature_cache import write_atomically
from app.types import EncodedItem, Item

MIN_BATCH_TOKENS = 2048
"""A batch is run once it has this many tokens."""
FINAL_COPIES = 8
"""How often the last response token and the closing token are stored."""
MAX_FLOAT16 = 65504


@dataclass(frozen=True, slots=True)
class HarvestProgress:
    """Number of documents read and of rows stored; progress.json has these keys."""

    documents: int = 0
    rows: int = 0


class ActivationStore:
    """float16 rows of one width in a flat file, and a JSON file with the number of complete rows."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder = folder
        self.width = width
        self._file = folder / "activations.f16"
        self._progress_file = folder / "progress.json"

    def read_progress(self) -> HarvestProgress:
        """Return the progress to resume from."""
        return (
            HarvestProgress(**json.loads(self._progress_file.read_text()))
            if self._progress_file.exists()
            else HarvestProgress()
        )

    def append(self, rows: Tensor, progress: HarvestProgress) -> None:
        """Write rows, then the progress that includes them; rows without it are overwritten next time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("r+b" if self._file.exists() else "wb") as stream:
            stream.seek((progress.rows - len(rows)) * self.width * 2)
            stream.truncate()
            stream.write(rows.to(torch.float16).numpy().tobytes())
        write_atomically(self._progress_file, json.dumps(asdict(progress)))

    def rows(self) -> NDArray[np.float16]:
        """Return all complete rows, memory-mapped."""
        count = json.loads(self._progress_file.read_text())["rows"]
        return np.memmap(self._file, np.float16, "r", shape=(count, self.width))


def harvest_activations(
    chats: Iterable[Item],
    *,
    backbone: Backbone,
    tokenizer: ChatTokenizer,
    layer: int,
    rows: int,
    store: ActivationStore,
    progress: Callable[[int], None],
) -> None:
    """Run chats through the backbone until the store has `rows` rows; `progress` receives their number."""
    harvested = store.read_progress()
    progress(harvested.rows)
    for batch in _iter_batches(islice(chats, harvested.documents, None), tokenizer):
        if harvested.rows >= rows:
            return
        residuals = _compute_residuals(batch, backbone, layer)
        harvested = HarvestProgress(harvested.documents + len(batch), harvested.rows + len(residuals))
        store.append(residuals, harvested)
        progress(harvested.rows)


def interleave(sources: Sequence[Iterable[Item]]) -> Iterator[Item]:
    """Yield one item of each source in turn, until all are exhausted."""
    rounds = chain.from_iterable(zip_longest(*sources))
    return (item for item in rounds if item is not None)


def _compute_residuals(batch: list[EncodedItem], backbone: Backbone, layer: int) -> Tensor:
    packed = pack([item.ids for item in batch])
    ends = [packed.rows(i, item.response_end - 1, item.response_end + 1) for i, item in enumerate(batch)]
    rows = np.concatenate([np.flatnonzero(packed.positions > 0), *ends * (FINAL_COPIES - 1)])
    residuals = backbone.residuals(packed, {layer: rows})[layer].at(rows)
    return residuals.cpu().clamp(-MAX_FLOAT16, MAX_FLOAT16)


def _iter_batches(chats: Iterable[Item], tokenizer: ChatTokenizer) -> Iterator[list[EncodedItem]]:
    batch: list[EncodedItem] = []
    size = 0
    for encoded in (tokenizer.encode([chat])[0] for chat in chats):
        batch.append(encoded)
        size += len(encoded.ids)
        if size >= MIN_BATCH_TOKENS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
