"""Small passes of a GPU for the price of one launch.

Up to about a thousand tokens a GPU computes faster than it can be told what to do next. So a pass of so many
rows is recorded once, as a CUDA graph over tensors that stay where they are, and played for every batch that
fits: what it spells, what is known of it and who sees whom is written into them before. A CPU has nothing to
gain; there a step is computed anew each time, which is how its laws are tested.
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

SIZES, KNOWN, WARM = (64, 128, 256, 512, 1024), (0, 256, 1024), 3
Start = Callable[[Tensor, Tensor], tuple[Tensor, Mapping[str, Tensor]]]
Streams = dict[int, Tensor]
log = logging.getLogger("sparserm")


class Steps:
    """The steps of one stack of layers; `start` makes the first stream, and turns, of ids and positions."""

    def __init__(self, stack: Sequence[DecoderLayer], start: Start) -> None:
        self._stack, self._start = stack, start
        self._steps: dict[tuple[int, int, tuple[int, ...]], Step] = {}
        self._rows = torch.Tensor()
        self._pool: Any = None
        self._one_at_a_time = threading.Lock()
        self.able = True

    @property
    def taken(self) -> set[tuple[int, int]]:
        """The sizes there are steps of: new rows, and rows for what is known."""
        return {(size, known) for size, known, _ in self._steps}

    def fit(self, packed: PackedBatch) -> bool:
        """Whether a batch is small enough, and steps can be recorded here."""
        return self.able and len(packed.ids) <= SIZES[-1] and packed.num_cached_rows <= KNOWN[-1]

    def streams(
        self, packed: PackedBatch, places: Mapping[int, Tensor], memory: PrefixCacheLookup
    ) -> Streams | None:
        """The stream after each of some layers at some of the new rows, or None where steps cannot be."""
        size, known = _least(SIZES, len(packed.ids)), _least(KNOWN, packed.num_cached_rows)
        with self._one_at_a_time:
            try:
                step = self._step(size, known, tuple(sorted(places)))
            except RuntimeError as error:
                log.warning("passes cannot be recorded on this device (%s); they are launched", error)
                self.able = False
                return None
            step.write(pad_batch(packed, size), memory)
            streams = step.play()
            step.note(packed.num_cached_rows, memory)
            return {layer: streams[layer][at] for layer, at in places.items()}

    def _step(self, size: int, known: int, wanted: tuple[int, ...]) -> "Step":
        if not len(self._rows):
            first = self._stack[0].q_proj
            self._rows = torch.zeros(
                len(self._stack), KNOWN[-1] + SIZES[-1], self._stack[0].shape.kv_size,
                dtype=first.dtype, device=first.device,
            )  # fmt: skip
            self._pool = torch.cuda.graph_pool_handle() if first.device.type == "cuda" else None
        key = (size, known, wanted)
        if key not in self._steps:
            rows = self._rows[: wanted[-1], : known + size]
            step = Step(self._stack[: wanted[-1]], self._start, rows, size, wanted)
            step.play = recorded(step.play, rows.device, self._pool)
            self._steps[key] = step
        return self._steps[key]


class Step:
    """A pass of so many new rows after so many that are known, nobody's where there are fewer."""

    def __init__(
        self, stack: Sequence[DecoderLayer], start: Start, rows: Tensor, size: int, wanted: tuple[int, ...]
    ) -> None:
        self._stack, self._start, self._rows, self._wanted = stack, start, rows, wanted
        self._size, self._known = size, rows.shape[1] - size
        self.play: Callable[[], Streams] = self._computed
        numbers = rows.new_zeros(3 * size + rows.shape[1], dtype=torch.int64)
        self._ids, self._positions, self._owner, self._places = torch.split(
            numbers, [size] * 3 + [rows.shape[1]]
        )
        self._seen = rows.new_zeros(size, rows.shape[1], dtype=torch.bool)

    def write(self, packed: PackedBatch, memory: PrefixCacheLookup) -> None:
        """A batch of just as many rows, and what is known of it."""
        seen, places = (
            self._spread(a, packed.num_cached_rows) for a in build_visibility_table(packed.segments)
        )
        owner = np.repeat(np.arange(len(seen)), [one.stop - one.start for one in packed.segments])
        for own, array in (
            (self._ids, packed.ids), (self._positions, packed.positions), (self._owner, owner),
            (self._places, places), (self._seen[: len(seen)], seen),
        ):  # fmt: skip
            own.copy_(copy_to_device(array, own.device), non_blocking=True)
        self._rows[:, : self._known].zero_()
        for layer, row in enumerate(self._rows):
            memory.copy_prefixes(layer, packed.prefix_copies, row)

    def note(self, before: int, memory: PrefixCacheLookup) -> None:
        """Leave in memory what is to be kept."""
        if memory.rows_to_store:
            for layer, row in enumerate(self._rows):
                memory.collect_new_entries(layer, torch.cat([row[:before], row[self._known :]]))

    def _spread(self, array: NDArray[Any], before: int) -> NDArray[Any]:
        """Known rows first and new rows last, with nobody's between."""
        nobody = np.zeros((*array.shape[:-1], self._known - before), dtype=array.dtype)
        return np.concatenate([array[..., :before], nobody, array[..., before:]], axis=-1)

    def _computed(self) -> Streams:
        back = self._positions[:, None] - self._places
        hidden = ~self._seen[self._owner] | (back < 0)
        sights = {window: self._sight(hidden, back, window) for window in {b.window for b in self._stack}}
        stream, turns = self._start(self._ids, self._positions)
        found: Streams = {}
        for number, block in enumerate(self._stack, start=1):
            stream = block(stream, self._rows[number - 1], turns[block.layer_type], sights[block.window])
            if number in self._wanted:
                found[number] = stream.clone()
        return found

    def _sight(self, hidden: Tensor, back: Tensor, window: int | None) -> SegmentedMask:
        """All rows as one piece."""
        if window is not None:
            hidden = hidden | (back >= window)
        veil = self._rows.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        new, whole = slice(0, self._size), slice(0, len(self._places))
        return SegmentedMask((SegmentMask(whole, len(self._places), (QueryTile(new, whole, veil),)),))


def recorded(work: Callable[[], Streams], device: torch.device, pool: Any) -> Callable[[], Streams]:
    """Work over the same memory each time, recorded where there is a GPU.

    What it finds there lasts until anything of the same pool is played.
    """
    if device.type != "cuda":
        return work
    now, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(now)
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            work()
    now.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        found = work()

    def again() -> Streams:
        graph.replay()
        return found

    return again


def _least(sizes: Sequence[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
