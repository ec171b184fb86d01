"""The frozen half over preference pairs, computed once and kept: pooled residuals and firing shares.

Projections are linear, so any choice of directions can be read from the pooled residual later.
Each block of pairs is saved as it is done; an interrupted run goes on with the next block.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.model.backbone import Backbone
from app.model.directions import Dictionary, pool, span
from app.model.packing import pack
from app.model.text import Text
from app.types import Pair, ReadOut

BLOCK = 16


@dataclass(frozen=True, slots=True)
class Table:
    """Axis 1 is (chosen, rejected): pooled residuals (N, 2, D), firing shares (N, 2, F), tokens (N, 2)."""

    pooled: Tensor
    firing: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """Everything that decides what a feature table holds."""

    backbone: Backbone
    text: Text
    dictionary: Dictionary
    layer: int
    readout: ReadOut
    sae_sha256: str

    @property
    def key(self) -> str:
        """A digest of those things, so that a cached block is never mistaken for another's."""
        parts = (self.backbone.digest, self.text.digest, str(self.text.max_tokens), self.sae_sha256)
        return hashlib.sha256("/".join((*parts, str(self.layer), self.readout)).encode()).hexdigest()


def table(pairs: list[Pair], reader: Reader, cache: Path, report: Callable[[int], None]) -> Table:
    """Features of every pair, in order."""
    blocks = []
    for start in range(0, len(pairs), BLOCK):
        blocks.append(_block(pairs[start : start + BLOCK], reader, cache))
        report(start + len(pairs[start : start + BLOCK]))
    return Table(*(torch.cat([block[name] for block in blocks]) for name in ("pooled", "firing", "tokens")))


def _block(pairs: list[Pair], reader: Reader, cache: Path) -> dict[str, Tensor]:
    named = hashlib.sha256("\0".join([reader.key, *map(repr, pairs)]).encode()).hexdigest()
    file = cache / "features" / f"{named[:32]}.safetensors"
    if file.exists():
        return load_file(file)
    block = _compute(pairs, reader)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(block, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)
    return block


def _compute(pairs: list[Pair], reader: Reader) -> dict[str, Tensor]:
    encoded = reader.text.encode([exchange for pair in pairs for exchange in pair.exchanges])
    packed = pack([one.ids for one in encoded])
    layer = reader.backbone.residuals(packed, [reader.layer])[reader.layer]
    spans = [span(reader.readout, one) for one in encoded]
    rows = [torch.from_numpy(packed.rows(i, *at)).to(layer.device) for i, at in enumerate(spans)]
    lengths = [stop - start for start, stop in spans]
    residuals = layer[torch.cat(rows)]
    fired = (reader.dictionary.activate(residuals) > 0).float()
    tokens = torch.tensor([one.stop - one.start for one in encoded])
    return {
        "pooled": pool(residuals, lengths).cpu().reshape(len(pairs), 2, -1),
        "firing": pool(fired, lengths).cpu().half().reshape(len(pairs), 2, -1),
        "tokens": tokens.reshape(len(pairs), 2),
    }
