"""An attention mask that handles all segments in one kernel; used on GPUs, where each launch is costly.

FlexAttention skips blocks of keys that no query of a block attends to, and evaluates a mask function on the
single (query, key) pairs of the remaining blocks. The same kernel caps the logits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from app.backbone.attention import RowIndices
from app.backbone.packing import Segment
from app.backbone.runtime.transfer import copy_to_device

BLOCK_SIZE = 128


@dataclass(frozen=True, slots=True)
class FlexAttentionMask:
    """An attention mask as FlexAttention's block mask: visible blocks, and a function for single pairs."""

    block_mask: BlockMask

    @classmethod
    def from_segments(
        cls, segments: Iterable[Segment], window: int | None, query_rows: RowIndices, like: Tensor
    ) -> Self:
        """Build the mask for queries at `query_rows` (ascending); `like` gives the device.

        The query tensor passed to `attend` holds one row for each entry of `query_rows`, in the same order.
        """
        segments = list(segments)
        visible, positions = build_visibility_table(segments)
        segment_of_query = np.searchsorted([segment.stop for segment in segments], query_rows, side="right")
        blocks = _visible_blocks(visible, segment_of_query, positions, query_rows)
        order = np.argsort(~blocks, axis=1, kind="stable")
        tensors = [
            copy_to_device(array, like.device)
            for array in (visible, segment_of_query, positions, positions[query_rows])
        ]
        num_blocks, block_indices = (
            copy_to_device(array.astype(np.int32), like.device) for array in (blocks.sum(1), order)
        )
        block_mask = BlockMask.from_kv_blocks(
            num_blocks[None, None], block_indices[None, None], BLOCK_SIZE=BLOCK_SIZE,
            mask_mod=_mask_function(tensors, window), seq_lengths=(len(query_rows), visible.shape[1]),
        )  # fmt: skip
        return cls(block_mask)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """See `AttentionMask`."""
        q, k, v = (t.transpose(0, 1)[None] for t in (queries, keys, values))
        kernel = _compile_flex_attention() if queries.is_cuda else flex_attention
        attended = kernel(
            q, k, v, _softcap_function(softcap), self.block_mask, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        rows: Tensor = attended[0].transpose(0, 1).flatten(1)
        return rows


@cache
def _compile_flex_attention() -> Any:
    """Compile the kernel once in a process, for batches of any size."""
    return torch.compile(flex_attention, dynamic=True)


def build_visibility_table(segments: Sequence[Segment]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return (S, T) rows that each segment and its ancestors cover, and (T,) positions in the item."""
    visible = np.zeros((len(segments), segments[-1].stop), dtype=bool)
    positions = np.zeros(segments[-1].stop, dtype=np.int64)
    for number, segment in enumerate(segments):
        position = 0
        for start, stop in (*segment.ancestors, (segment.start, segment.stop)):
            visible[number, start:stop] = True
            positions[start:stop] = np.arange(position, position + stop - start)
            position += stop - start
    return visible, positions


def _visible_blocks(
    visible: NDArray[np.bool_],
    segment_of_query: RowIndices,
    positions: NDArray[np.int64],
    query_rows: RowIndices,
) -> NDArray[np.bool_]:
    """Return for each (query block, key block) whether any pair may attend; future blocks are excluded."""
    padded_length = -(-visible.shape[1] // BLOCK_SIZE) * BLOCK_SIZE
    padded_visible = np.zeros((len(visible), padded_length), dtype=bool)
    padded_visible[:, : visible.shape[1]] = visible
    padded_positions = np.full(padded_length, np.iinfo(np.int64).max)
    padded_positions[: len(positions)] = positions
    in_block: NDArray[np.bool_] = np.logical_or.reduce(
        padded_visible.reshape(len(visible), -1, BLOCK_SIZE), axis=2
    )
    first_position = padded_positions.reshape(-1, BLOCK_SIZE).min(1)
    blocks = [slice(start, start + BLOCK_SIZE) for start in range(0, len(query_rows), BLOCK_SIZE)]
    is_reachable = np.stack([in_block[np.unique(segment_of_query[block])].any(axis=0) for block in blocks])
    last_position = np.array([positions[query_rows[block]].max() for block in blocks])
    is_not_future: NDArray[np.bool_] = np.greater_equal.outer(last_position, first_position)
    return is_reachable & is_not_future


def _mask_function(tensors: Sequence[Tensor], window: int | None) -> Callable[..., Tensor]:
    visible, segment_of_query, positions, query_positions = tensors
    reach = window or len(positions)

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query_positions[query] - positions[key]
        return visible[segment_of_query[query], key] & (distance >= 0) & (distance < reach)

    return mask


def _softcap_function(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap
