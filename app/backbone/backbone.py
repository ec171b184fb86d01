"""A frozen LLM cut after the deepest layer that a reward model reads: maps a PackedBatch to residuals.

Linear layers process all rows at once; attention is restricted to each segment's ancestors and itself. The
deepest layer computes keys and values for all rows, and everything else only for the rows that are read.
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
from app.backbone.runtime.cuda_graphs import CudaGraphRunner
from app.backbone.runtime.transfer import copy_to_device


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual stream after one layer, float32, at the requested rows (ascending)."""

    rows: RowIndices
    values: Tensor

    def at(self, rows: RowIndices) -> Tensor:
        """Return the values at some of the rows, in the given order."""
        return self.values[copy_to_device(np.searchsorted(self.rows, rows), self.values.device)]


class Backbone:
    """The first layers of an LLM, loaded on one device."""

    def __init__(
        self, decoder: PreTrainedModel, *, name: str, digest: str, num_parameters: int, total_layers: int
    ) -> None:
        decoder.eval().requires_grad_(requires_grad=False)
        self.config = decoder.config
        self.embedding: Any = decoder.get_input_embeddings()
        self.layers = _fold_layers(decoder)
        _copy_cpu_parameters(decoder)
        self.name = name
        self.digest = digest
        self.num_parameters = num_parameters
        self.total_layers = total_layers
        on_gpu = self.device.type == "cuda"
        self.mask_type: type[SegmentedMask | FlexAttentionMask] = (
            FlexAttentionMask if on_gpu else SegmentedMask
        )
        self._norm, self._rotary = decoder.norm, decoder.rotary_emb
        self.cuda_graphs = CudaGraphRunner(self.layers, self.embed) if on_gpu else None

    @property
    def num_layers(self) -> int:
        """The number of layers that were loaded."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.layers[0].q_proj.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products; the hidden states between layers are float32."""
        return self.layers[0].q_proj.dtype

    @property
    def weights(self) -> list[Tensor]:
        """All frozen tensors."""
        return [*self.embedding.parameters(), *(tensor for layer in self.layers for tensor in layer.tensors)]

    @torch.inference_mode()
    def residuals(
        self,
        packed: PackedBatch,
        rows_by_layer: Mapping[int, RowIndices],
        lookup: PrefixCacheLookup | None = None,
    ) -> dict[int, Residuals]:
        """Run a forward pass and return the residuals after each requested layer at its computed rows.

        Layers are numbered from 1. `lookup` supplies the cached prefixes and receives the new entries.
        """
        sorted_rows = {layer: np.unique(rows) for layer, rows in rows_by_layer.items()}
        indices = {
            layer: copy_to_device(rows - packed.num_cached_rows, self.device)
            for layer, rows in sorted_rows.items()
        }
        lookup, outputs = lookup or PrefixCacheLookup(max(sorted_rows)), None
        if self.cuda_graphs and self.cuda_graphs.can_run(packed):
            outputs = self.cuda_graphs.run(packed, indices, lookup)
        outputs = outputs or self._forward(packed, sorted_rows, indices, lookup)
        return {layer: Residuals(sorted_rows[layer], values) for layer, values in outputs.items()}

    def _forward(
        self,
        packed: PackedBatch,
        rows_by_layer: Mapping[int, RowIndices],
        indices: Mapping[int, Tensor],
        lookup: PrefixCacheLookup,
    ) -> dict[int, Tensor]:
        """Return hidden states after each requested layer; `indices` are its rows without the cached ones."""
        packed = pad_batch(packed, self.layers[0].q_proj.round_up_rows(len(packed.ids)))
        hidden_states, rotary = self.embed(
            copy_to_device(packed.ids, self.device), copy_to_device(packed.positions, self.device)
        )
        kv_shape = (packed.num_cached_rows + len(hidden_states), self.layers[0].config.kv_size)
        kv = torch.empty(kv_shape, dtype=self.dtype, device=self.device)
        deepest = max(rows_by_layer)
        windows = {layer.window for layer in self.layers[: deepest - 1]}
        masks = {window: self._build_mask(packed, window, packed.computed_rows, kv) for window in windows}
        outputs: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers[:deepest], start=1):
            lookup.copy_prefixes(number - 1, packed.prefix_copies, kv)
            if number < deepest:
                hidden_states = layer(hidden_states, kv, rotary[layer.layer_type], masks[layer.window])
            else:
                mask = self._build_mask(packed, layer.window, rows_by_layer[deepest], kv)
                hidden_states = layer(hidden_states, kv, rotary[layer.layer_type], mask, indices[deepest])
            lookup.collect_new_entries(number - 1, kv)
            if number in rows_by_layer:
                outputs[number] = hidden_states if number == deepest else hidden_states[indices[number]]
        return outputs

    def _build_mask(
        self, packed: PackedBatch, window: int | None, query_rows: RowIndices, like: Tensor
    ) -> SegmentedMask | FlexAttentionMask:
        return self.mask_type.from_segments(packed.segments, window, query_rows, like)

    @torch.inference_mode()
    def project_to_vocabulary(self, directions: Tensor) -> Tensor | None:
        """Return (K, V) logits of residual directions (K, D); None if embedding and output head differ."""
        if not self.config.tie_word_embeddings:
            return None
        embeddings: Tensor = self.embedding.weight
        logits: Tensor = self._norm(directions.to(embeddings)) @ embeddings.T
        return logits.float()

    def embed(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the hidden states before the first layer, and the rotary embeddings of each layer type.

        Rotary embeddings are complex numbers of modulus one, (T, 1, d/2).
        """
        hidden_states = self.embedding(ids).float()
        half, rotary = self.layers[0].config.head_dim // 2, {}
        for layer_type in {layer.layer_type for layer in self.layers}:
            arguments = (layer_type,) if layer_type in self.config.rope_parameters else ()
            cos, sin = (part[0] for part in self._rotary(hidden_states, positions[None], *arguments))
            rotary[layer_type] = torch.complex(cos[:, :half], sin[:, :half])[:, None]
        return hidden_states, rotary


def _fold_layers(decoder: PreTrainedModel) -> list[DecoderLayer]:
    """Fold all layers; each original is dropped at once, so that the weights are never held twice."""
    folded: list[DecoderLayer] = []
    for index, layer in enumerate(decoder.layers):
        folded.append(fold_layer(layer, index, decoder.config))
        decoder.layers[index] = nn.Identity()
    return folded


def _copy_cpu_parameters(decoder: PreTrainedModel) -> None:
    """Copy the remaining parameters out of the memory-mapped checkpoint, so that the mapping is released."""
    for parameter in decoder.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
