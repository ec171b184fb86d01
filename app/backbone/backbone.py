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

from app.backbone.attention import Rows, Views
from app.backbone.decoder_layer import Layer, fold
from app.backbone.flex_attention import Blocks
from app.backbone.packing import Packed, filled
from app.backbone.prefix_cache import Session
from app.backbone.runtime.cuda_graphs import Steps
from app.backbone.runtime.transfer import sent


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual stream after one layer, float32, at the rows that were asked for."""

    rows: Rows
    values: Tensor

    def at(self, rows: Rows) -> Tensor:
        """Some of the rows, in any order."""
        return self.values[sent(np.searchsorted(self.rows, rows), self.values.device)]


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
        self.steps = Steps(self.stack, self.start) if self.device.type == "cuda" else None

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
        places = {layer: sent(rows - packed.before, self.device) for layer, rows in wanted.items()}
        memory, streams = session or Session(max(wanted)), None
        if self.steps and self.steps.fit(packed):
            streams = self.steps.streams(packed, places, memory)
        streams = streams or self._streams(packed, wanted, places, memory)
        return {layer: Residuals(wanted[layer], stream) for layer, stream in streams.items()}

    def _streams(
        self, packed: Packed, wanted: Mapping[int, Rows], places: Mapping[int, Tensor], memory: Session
    ) -> dict[int, Tensor]:
        """The stream after each of some layers at some rows."""
        packed = filled(packed, self.stack[0].queries.room(len(packed.ids)))
        stream, turns = self.start(sent(packed.ids, self.device), sent(packed.positions, self.device))
        wide = (packed.before + len(stream), self.stack[0].shape.memory)
        row = torch.empty(wide, dtype=self.dtype, device=self.device)
        deepest = max(wanted)
        windows = {block.window for block in self.stack[: deepest - 1]}
        sights = {one: self.sight.of(packed.segments, one, packed.everything, row) for one in windows}
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.stack[:deepest], start=1):
            memory.fill(number - 1, packed.fills, row)
            if number < deepest:
                stream = block(stream, row, turns[block.look], sights[block.window])
            else:
                last = self.sight.of(packed.segments, block.window, wanted[deepest], row)
                stream = block(stream, row, turns[block.look], last, places[deepest])
            memory.note(number - 1, row)
            if number in wanted:
                found[number] = stream if number == deepest else stream[places[number]]
        return found

    @torch.inference_mode()
    def spoken(self, directions: Tensor) -> Tensor | None:
        """What each direction says in the vocabulary, (K, V) logits; None if the head was not kept."""
        if not self.config.tie_word_embeddings:
            return None
        embeddings: Tensor = self.embedding.weight
        logits: Tensor = self._norm(directions.to(embeddings)) @ embeddings.T
        return logits.float()

    def start(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The first stream, and for each way to look how heads turn to where they stand.

        Turns are complex numbers of length one, (T, 1, d/2).
        """
        stream = self.embedding(ids).float()
        half, turns = self.stack[0].shape.size // 2, {}
        for look in {block.look for block in self.stack}:
            kind = (look,) if look in self.config.rope_parameters else ()
            cosine, sine = (part[0] for part in self._rotary(stream, positions[None], *kind))
            turns[look] = torch.complex(cosine[:, :half], sine[:, :half])[:, None]
        return stream, turns


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
