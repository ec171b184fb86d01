"""A frozen LLM cut after the deepest layer anybody reads: Packed → residuals.

Every linear layer sees one flat row; attention runs segment by segment over ancestors and itself. The deepest
layer gives keys and values for all, and the rest of itself only to the rows that are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.model.attention import Rows, Views
from app.model.blocks import Blocks
from app.model.layers import Layer, fold
from app.model.packing import Packed, filled
from app.model.recall import Session


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual stream after one layer, float32, at the rows that were asked for."""

    rows: Rows
    values: Tensor

    def at(self, rows: Rows) -> Tensor:
        """Some of the rows, in any order."""
        return self.values[torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.values.device)]


class Backbone:
    """The first layers of an LLM, resident on one device."""

    def __init__(
        self, decoder: PreTrainedModel, *, name: str, digest: str, parameters: int, total_layers: int
    ) -> None:
        decoder.eval().requires_grad_(requires_grad=False)
        self.config = decoder.config
        self.embedding: Any = decoder.get_input_embeddings()
        self.stack = _folded(decoder)
        _own(decoder)
        self.name = name
        self.digest = digest
        self.parameters = parameters
        self.total_layers = total_layers
        self.sight: type[Views | Blocks] = Blocks if self.device.type == "cuda" else Views
        self._norm, self._rotary = decoder.norm, decoder.rotary_emb

    @property
    def layers(self) -> int:
        """How many layers were kept."""
        return len(self.stack)

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.stack[0].queries.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products; the stream between layers is float32."""
        return self.stack[0].queries.dtype

    @property
    def weights(self) -> list[Tensor]:
        """Everything that is frozen."""
        return [*self.embedding.parameters(), *(tensor for block in self.stack for tensor in block.tensors)]

    @torch.inference_mode()
    def residuals(
        self, packed: Packed, reads: Mapping[int, Rows], session: Session | None = None
    ) -> dict[int, Residuals]:
        """The residual stream after each of some layers, at some rows that are computed."""
        wanted = {layer: np.unique(rows) for layer, rows in reads.items()}
        places = {
            layer: torch.from_numpy(rows - packed.before).to(self.device) for layer, rows in wanted.items()
        }
        packed = filled(packed, self.stack[0].queries.room(len(packed.ids)))
        stream = self.embedding(torch.from_numpy(packed.ids).to(self.device)).float()
        wide = (packed.before + len(stream), self.stack[0].shape.memory)
        row = torch.empty(wide, dtype=self.dtype, device=self.device)
        turns, deepest = self._turns(packed), max(wanted)
        memory = session or Session(deepest)
        windows = {block.window for block in self.stack[: deepest - 1]}
        sights = {one: self.sight.of(packed.segments, one, packed.everything, row) for one in windows}
        found: dict[int, Residuals] = {}
        for number, block in enumerate(self.stack[:deepest], start=1):
            memory.fill(number - 1, packed.fills, row)
            if number < deepest:
                stream = block(stream, row, turns[block.look], sights[block.window])
            else:
                last = self.sight.of(packed.segments, block.window, wanted[deepest], row)
                stream = block(stream, row, turns[block.look], last, places[deepest])
            memory.note(number - 1, row)
            if number in wanted:
                values = stream if number == deepest else stream[places[number]]
                found[number] = Residuals(wanted[number], values)
        return found

    @torch.inference_mode()
    def spoken(self, directions: Tensor) -> Tensor | None:
        """What each direction says in the vocabulary, (K, V) logits; None if the head was not kept."""
        if not self.config.tie_word_embeddings:
            return None
        embeddings: Tensor = self.embedding.weight
        logits: Tensor = self._norm(directions.to(embeddings)) @ embeddings.T
        return logits.float()

    def _turns(self, packed: Packed) -> dict[str, Tensor]:
        """For each way to look, the unit complex numbers (T, 1, d/2) that turn a head to its position."""
        positions = torch.from_numpy(packed.positions).to(self.device)[None]
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        found = {}
        for look in {block.look for block in self.stack}:
            kind = (look,) if look in self.config.rope_parameters else ()
            cosine, sine = (part[0] for part in self._rotary(like, positions, *kind))
            half = self.stack[0].shape.size // 2
            found[look] = torch.complex(cosine[:, :half], sine[:, :half])[:, None]
        return found


def _folded(decoder: PreTrainedModel) -> list[Layer]:
    """The layers in serving form; each goes as its fold comes, so that no two copies stand side by side."""
    folded: list[Layer] = []
    for number, layer in enumerate(decoder.layers):
        folded.append(fold(layer, number, decoder.config))
        decoder.layers[number] = nn.Identity()
    return folded


def _own(decoder: PreTrainedModel) -> None:
    """What is left gets memory of its own where it lies in the file it was read from, so that this can go."""
    for left in decoder.parameters():
        if left.device.type == "cpu":
            left.data = left.data.clone()
