"""CUDA graphs for small batches, so that a forward pass costs one kernel launch.

Up to about a thousand tokens, launching kernels takes longer than running them. So the forward pass of a
fixed number of rows is captured once as a CUDA graph over static tensors, and replayed for every batch that
fits: its tokens, its cached prefixes and its attention mask are first written into these tensors. A CPU gains
nothing from this; there the same code runs without capture, so that the tests cover it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.backbone.attention import QueryTile, SegmentedMask, SegmentMask
from app.backbone.decoder_layer import DecoderLayer
from app.backbone.flex_attention import build_visibility_table
from app.backbone.packing import PackedBatch, pad_batch
from app.backbone.prefix_cache import PrefixCacheLookup
from app.backbone.runtime.transfer import copy_to_device

NEW_ROW_SIZES = (64, 128, 256, 512, 1024)
"""Numbers of computed rows that graphs are captured for; a batch is padded to the next one."""
CACHED_ROW_SIZES = (0, 256, 1024)
"""Numbers of rows for cached prefixes, likewise."""
WARMUP_RUNS = 3
EmbedFunction = Callable[[Tensor, Tensor], tuple[Tensor, Mapping[str, Tensor]]]
LayerOutputs = dict[int, Tensor]
log = logging.getLogger("sparserm")


class CudaGraphRunner:
    """Captures and replays the forward passes of a stack of layers, one graph for each size.

    `embed` maps token ids and positions to the first hidden states and the rotary embeddings.
    """

    def __init__(self, layers: Sequence[DecoderLayer], embed: EmbedFunction) -> None:
        self._layers, self._embed = layers, embed
        self._forward_passes: dict[tuple[int, int, tuple[int, ...]], StaticForwardPass] = {}
        self._kv = torch.Tensor()
        self._pool: Any = None
        self._lock = threading.Lock()
        self.is_supported = True

    @property
    def captured_sizes(self) -> set[tuple[int, int]]:
        """The (new rows, cached rows) that have a graph."""
        return {(new_rows, cached_rows) for new_rows, cached_rows, _ in self._forward_passes}

    def can_run(self, packed: PackedBatch) -> bool:
        """Return whether the batch is small enough and the device can capture graphs."""
        fits = len(packed.ids) <= NEW_ROW_SIZES[-1] and packed.num_cached_rows <= CACHED_ROW_SIZES[-1]
        return self.is_supported and fits

    def run(
        self, packed: PackedBatch, indices: Mapping[int, Tensor], lookup: PrefixCacheLookup
    ) -> LayerOutputs | None:
        """Return hidden states after each requested layer at some of its new rows; None if capture fails.

        After a failed capture, `can_run` is false for every batch.
        """
        new_rows = _smallest_at_least(len(packed.ids), NEW_ROW_SIZES)
        cached_rows = _smallest_at_least(packed.num_cached_rows, CACHED_ROW_SIZES)
        with self._lock:
            try:
                forward_pass = self._get_or_capture(new_rows, cached_rows, tuple(sorted(indices)))
            except RuntimeError as error:
                log.warning("CUDA graphs are off: this device cannot capture a forward pass (%s)", error)
                self.is_supported = False
                return None
            forward_pass.load_batch(pad_batch(packed, new_rows), lookup)
            outputs = forward_pass.run()
            forward_pass.collect_new_entries(packed.num_cached_rows, lookup)
            return {layer: outputs[layer][rows] for layer, rows in indices.items()}

    def _get_or_capture(
        self, new_rows: int, cached_rows: int, output_layers: tuple[int, ...]
    ) -> "StaticForwardPass":
        if not len(self._kv):
            self._allocate()
        key = (new_rows, cached_rows, output_layers)
        if key not in self._forward_passes:
            deepest = output_layers[-1]
            kv = self._kv[:deepest, : cached_rows + new_rows]
            forward_pass = StaticForwardPass(self._layers[:deepest], self._embed, kv, new_rows, output_layers)
            forward_pass.run = capture_graph(forward_pass.run, kv.device, self._pool)
            self._forward_passes[key] = forward_pass
        return self._forward_passes[key]

    def _allocate(self) -> None:
        """Allocate the keys and values, which all graphs share, and the graphs' memory pool."""
        first = self._layers[0].q_proj
        self._kv = torch.zeros(
            len(self._layers), CACHED_ROW_SIZES[-1] + NEW_ROW_SIZES[-1], self._layers[0].config.kv_size,
            dtype=first.dtype, device=first.device,
        )  # fmt: skip
        self._pool = torch.cuda.graph_pool_handle() if first.device.type == "cuda" else None


class StaticForwardPass:
    """A forward pass of `new_rows` computed rows, after rows for cached prefixes, over static tensors.

    `kv` (L, cached rows + new rows, 2·G·d) holds keys and values. Cached rows that a batch does not need are
    zero and hidden by the mask.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        embed: EmbedFunction,
        kv: Tensor,
        new_rows: int,
        output_layers: tuple[int, ...],
    ) -> None:
        self._layers, self._embed, self._kv, self._output_layers = layers, embed, kv, output_layers
        self._new_rows, self._cached_rows = new_rows, kv.shape[1] - new_rows
        self.run: Callable[[], LayerOutputs] = self._forward
        integers = kv.new_zeros(3 * new_rows + kv.shape[1], dtype=torch.int64)
        self._ids, self._query_positions, self._segment_of_query, self._positions = torch.split(
            integers, [new_rows] * 3 + [kv.shape[1]]
        )
        self._visible = kv.new_zeros(new_rows, kv.shape[1], dtype=torch.bool)

    def load_batch(self, packed: PackedBatch, lookup: PrefixCacheLookup) -> None:
        """Write a batch of `new_rows` computed rows, and its cached prefixes, to the static tensors."""
        visible, positions = (
            self._insert_padding(table, packed.num_cached_rows)
            for table in build_visibility_table(packed.segments)
        )
        lengths = [segment.stop - segment.start for segment in packed.segments]
        segment_of_query = np.repeat(np.arange(len(visible)), lengths)
        for static, array in (
            (self._ids, packed.ids), (self._query_positions, packed.positions),
            (self._segment_of_query, segment_of_query), (self._positions, positions),
            (self._visible[: len(visible)], visible),
        ):  # fmt: skip
            static.copy_(copy_to_device(array, static.device), non_blocking=True)
        self._kv[:, : self._cached_rows].zero_()
        for layer, kv in enumerate(self._kv):
            lookup.copy_prefixes(layer, packed.prefix_copies, kv)

    def collect_new_entries(self, num_cached_rows: int, lookup: PrefixCacheLookup) -> None:
        """Copy the keys and values of new prompts to the lookup, from which the cache stores them."""
        if lookup.rows_to_store:
            for layer, kv in enumerate(self._kv):
                rows = torch.cat([kv[:num_cached_rows], kv[self._cached_rows :]])
                lookup.collect_new_entries(layer, rows)

    def _insert_padding(self, array: NDArray[Any], num_cached_rows: int) -> NDArray[Any]:
        """Return the array with padding between the batch's cached rows and its new rows (last axis)."""
        padding = np.zeros((*array.shape[:-1], self._cached_rows - num_cached_rows), dtype=array.dtype)
        return np.concatenate([array[..., :num_cached_rows], padding, array[..., num_cached_rows:]], axis=-1)

    def _forward(self) -> LayerOutputs:
        distance = self._query_positions[:, None] - self._positions
        hidden = ~self._visible[self._segment_of_query] | (distance < 0)
        windows = {layer.window for layer in self._layers}
        masks = {window: self._build_mask(hidden, distance, window) for window in windows}
        hidden_states, rotary = self._embed(self._ids, self._query_positions)
        outputs: LayerOutputs = {}
        for number, layer in enumerate(self._layers, start=1):
            hidden_states = layer(
                hidden_states, self._kv[number - 1], rotary[layer.layer_type], masks[layer.window]
            )
            if number in self._output_layers:
                outputs[number] = hidden_states.clone()
        return outputs

    def _build_mask(self, hidden: Tensor, distance: Tensor, window: int | None) -> SegmentedMask:
        """Return a mask that treats all rows as one segment with one query tile."""
        if window is not None:
            hidden = hidden | (distance >= window)
        mask_bias = self._kv.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        queries, keys = slice(0, self._new_rows), slice(0, len(self._positions))
        tile = QueryTile(queries, keys, mask_bias)
        return SegmentedMask((SegmentMask(keys, len(self._positions), (tile,)),))


def capture_graph(
    forward: Callable[[], LayerOutputs], device: torch.device, pool: Any
) -> Callable[[], LayerOutputs]:
    """Capture `forward` as a CUDA graph and return its replay; on a CPU, return `forward` unchanged.

    The outputs of a replay are valid until another graph of the same pool is replayed.
    """
    if device.type != "cuda":
        return forward
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARMUP_RUNS):
            forward()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = forward()

    def replay() -> LayerOutputs:
        graph.replay()
        return outputs

    return replay


def _smallest_at_least(minimum: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= minimum)
