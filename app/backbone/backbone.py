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

from app.backbone.attention import RowIndices, SegmentedMask
from app.backbone.decoder_layer import DecoderLayer, fold_layer
from app.backbone.flex_attention import FlexAttentionMask
from app.backbone.packing import PackedBatch, pad_batch
from app.backbone.prefix_cache import PrefixCacheLookup
from app.backbone.runtime.cuda_graphs import Steps
from app.backbone.runtime.transfer import copy_to_device


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual stream after one layer, float32, at the rows that were asked for."""

    rows: RowIndices
    values: Tensor

    def at(self, rows: RowIndices) -> Tensor:
        """Some of the rows, in any order."""
        return self.values[copy_to_device(np.searchsorted(self.rows, rows), self.values.device)]


class Backbone:
    """The first layers of an LLM, resident on one device."""

    def __init__(
        self, decoder: PreTrainedModel, *, name: str, digest: str, num_parameters: int, total_layers: int
    ) -> None:
        decoder.eval().requires_grad_(requires_grad=False)
        self.config = decoder.config
        self.embedding: Any = decoder.get_input_embeddings()
        self.layers = _folded(decoder)
        _own(decoder)
        self.name = name
        self.digest = digest
        self.parameters = num_parameters
        self.total_layers = total_layers
        self.mask_type: type[SegmentedMask | FlexAttentionMask] = (
            FlexAttentionMask if self.device.type == "cuda" else SegmentedMask
        )
        self._norm, self._rotary = decoder.norm, decoder.rotary_emb
        self.cuda_graphs = Steps(self.layers, self.embed) if self.device.type == "cuda" else None

    @property
    def num_layers(self) -> int:
        """How many layers were kept."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.layers[0].q_proj.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products; the stream between layers is float32."""
        return self.layers[0].q_proj.dtype

    @property
    def weights(self) -> list[Tensor]:
        """Everything that is frozen."""
        return [*self.embedding.parameters(), *(tensor for block in self.layers for tensor in block.tensors)]

    @torch.inference_mode()
    def residuals(
        self, packed: PackedBatch, reads: Mapping[int, RowIndices], session: PrefixCacheLookup | None = None
    ) -> dict[int, Residuals]:
        """The residual stream after each of some layers, at some rows that are computed."""
        wanted = {layer: np.unique(rows) for layer, rows in reads.items()}
        places = {
            layer: copy_to_device(rows - packed.num_cached_rows, self.device)
            for layer, rows in wanted.items()
        }
        memory, streams = session or PrefixCacheLookup(max(wanted)), None
        if self.cuda_graphs and self.cuda_graphs.fit(packed):
            streams = self.cuda_graphs.streams(packed, places, memory)
        streams = streams or self._streams(packed, wanted, places, memory)
        return {layer: Residuals(wanted[layer], stream) for layer, stream in streams.items()}

    def _streams(
        self,
        packed: PackedBatch,
        wanted: Mapping[int, RowIndices],
        places: Mapping[int, Tensor],
        memory: PrefixCacheLookup,
    ) -> dict[int, Tensor]:
        """The stream after each of some layers at some rows."""
        packed = pad_batch(packed, self.layers[0].q_proj.round_up_rows(len(packed.ids)))
        stream, turns = self.embed(
            copy_to_device(packed.ids, self.device), copy_to_device(packed.positions, self.device)
        )
        wide = (packed.num_cached_rows + len(stream), self.layers[0].shape.kv_size)
        row = torch.empty(wide, dtype=self.dtype, device=self.device)
        deepest = max(wanted)
        windows = {block.window for block in self.layers[: deepest - 1]}
        sights = {
            one: self.mask_type.from_segments(packed.segments, one, packed.computed_rows, row) for one in windows
        }
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.layers[:deepest], start=1):
            memory.copy_prefixes(number - 1, packed.prefix_copies, row)
            if number < deepest:
                stream = block(stream, row, turns[block.layer_type], sights[block.window])
            else:
                last = self.mask_type.from_segments(packed.segments, block.window, wanted[deepest], row)
                stream = block(stream, row, turns[block.layer_type], last, places[deepest])
            memory.collect_new_entries(number - 1, row)
            if number in wanted:
                found[number] = stream if number == deepest else stream[places[number]]
        return found

    @torch.inference_mode()
    def project_to_vocabulary(self, directions: Tensor) -> Tensor | None:
        """What each direction says in the vocabulary, (K, V) logits; None if the head was not kept."""
        if not self.config.tie_word_embeddings:
            return None
        embeddings: Tensor = self.embedding.weight
        logits: Tensor = self._norm(directions.to(embeddings)) @ embeddings.T
        return logits.float()

    def embed(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The first stream, and for each way to look how heads turn to where they stand.

        Turns are complex numbers of length one, (T, 1, d/2).
        """
        stream = self.embedding(ids).float()
        half, turns = self.layers[0].shape.head_dim // 2, {}
        for look in {block.layer_type for block in self.layers}:
            kind = (look,) if look in self.config.rope_parameters else ()
            cosine, sine = (part[0] for part in self._rotary(stream, positions[None], *kind))
            turns[look] = torch.complex(cosine[:, :half], sine[:, :half])[:, None]
        return stream, turns


def _folded(decoder: PreTrainedModel) -> list[DecoderLayer]:
    """The layers in serving form; each goes as its fold comes, so that no two copies stand side by side."""
    folded: list[DecoderLayer] = []
    for number, layer in enumerate(decoder.layers):
        folded.append(fold_layer(layer, number, decoder.config))
        decoder.layers[number] = nn.Identity()
    return folded


def _own(decoder: PreTrainedModel) -> None:
    """What is left gets memory of its own where it lies in the file it was read from, so that this can go."""
    for left in decoder.parameters():
        if left.device.type == "cpu":
            left.data = left.data.clone()
