"""A sight in blocks, all segments in one kernel: what suits a GPU, where every launch costs.

FlexAttention skips blocks of keys that no query of a block may see, and asks `mask` about single pairs in the
rest; logits are capped in the same kernel.
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
    """Which blocks of keys each block of queries may see, and within them which pairs."""

    block_mask: BlockMask

    @classmethod
    def from_segments(
        cls, segments: Iterable[Segment], window: int | None, read: RowIndices, like: Tensor
    ) -> Self:
        """What the queries at the rows in `read`, which lie side by side, attend to."""
        segments = list(segments)
        seen, places = build_visibility_table(segments)
        owner = np.searchsorted([segment.stop for segment in segments], read, side="right")
        coarse = _coarse(seen, owner, places, read)
        order = np.argsort(~coarse, axis=1, kind="stable")
        tensors = [copy_to_device(array, like.device) for array in (seen, owner, places, places[read])]
        count, which = (
            copy_to_device(array.astype(np.int32), like.device) for array in (coarse.sum(1), order)
        )
        mask = BlockMask.from_kv_blocks(
            count[None, None], which[None, None], BLOCK_SIZE=BLOCK_SIZE, mask_mod=_mask(tensors, window),
            seq_lengths=(len(read), seen.shape[1]),
        )  # fmt: skip
        return cls(mask)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """See `Sight`."""
        q, k, v = (t.transpose(0, 1)[None] for t in (queries, keys, values))
        kernel = _kernel() if queries.is_cuda else flex_attention
        found = kernel(
            q, k, v, _cap(softcap), self.block_mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        rows: Tensor = found[0].transpose(0, 1).flatten(1)
        return rows


@cache
def _kernel() -> Any:
    """Compiled once a process, for passes of any size."""
    return torch.compile(flex_attention, dynamic=True)


def build_visibility_table(segments: Sequence[Segment]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(S, T) rows that a segment sees at all, and the place of each row in its items."""
    seen = np.zeros((len(segments), segments[-1].stop), dtype=bool)
    places = np.zeros(segments[-1].stop, dtype=np.int64)
    for number, segment in enumerate(segments):
        at = 0
        for start, stop in (*segment.ancestors, (segment.start, segment.stop)):
            seen[number, start:stop] = True
            places[start:stop] = np.arange(at, at + stop - start)
            at += stop - start
    return seen, places


def _coarse(
    seen: NDArray[np.bool_], owner: RowIndices, places: NDArray[np.int64], read: RowIndices
) -> NDArray[np.bool_]:
    """(queries, keys) blocks with anything to see; what lies wholly ahead is left out."""
    width = -(-seen.shape[1] // BLOCK_SIZE) * BLOCK_SIZE
    padded = np.zeros((len(seen), width), dtype=bool)
    padded[:, : seen.shape[1]] = seen
    ahead = np.full(width, np.iinfo(np.int64).max)
    ahead[: len(places)] = places
    any_seen: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(len(seen), -1, BLOCK_SIZE), axis=2)
    nearest = ahead.reshape(-1, BLOCK_SIZE).min(1)
    blocks = [slice(start, start + BLOCK_SIZE) for start in range(0, len(read), BLOCK_SIZE)]
    among = np.stack([any_seen[np.unique(owner[some])].any(axis=0) for some in blocks])
    furthest = np.array([places[read[some]].max() for some in blocks])
    near: NDArray[np.bool_] = np.greater_equal.outer(furthest, nearest)
    return among & near


def _mask(tensors: Sequence[Tensor], window: int | None) -> Callable[..., Tensor]:
    seen, owner, places, own = tensors
    reach = window or len(places)

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        back = own[query] - places[key]
        return seen[owner[query], key] & (back >= 0) & (back < reach)

    return mask


def _cap(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap
