"""Attention over a packed row: each segment attends to its ancestors and to itself, and to no other rows.

A mask is built once per forward pass and reused by every layer with the same attention window. oneDNN never
frees the kernels it builds for 16-bit shapes, so numbers of queries and keys are rounded up to few values.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from app.backbone.packing import Segment
from app.backbone.runtime.transfer import copy_to_device

RowIndices = NDArray[np.int64]
QUERY_TILE_ROWS = 128
ROW_MULTIPLE = 32


class AttentionMask(Protocol):
    """Defines which keys each query of a forward pass attends to, and computes that attention."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """Return (Q, H·d) attention of queries (Q, H, d) over keys and values (T, G, d), with G KV heads."""


@dataclass(frozen=True, slots=True)
class QueryTile:
    """Consecutive queries, the range of keys that covers all they attend to, and a mask between the two.

    `mask_bias` is 0 where a query attends to a key and -inf elsewhere. It may have more rows than there are
    queries; the results of these padding rows are discarded.
    """

    queries: slice
    keys: slice
    mask_bias: Tensor


@dataclass(frozen=True, slots=True)
class SegmentMask:
    """The rows that hold the keys of one segment, their padded number, and the segment's query tiles."""

    keys: slice | Tensor
    num_padded_keys: int
    tiles: tuple[QueryTile, ...]


@dataclass(frozen=True, slots=True)
class SegmentedMask:
    """An attention mask that is evaluated one segment at a time; used on CPUs, where calls are cheap."""

    segments: tuple[SegmentMask, ...]

    @classmethod
    def from_segments(
        cls, segments: Iterable[Segment], window: int | None, query_rows: RowIndices, like: Tensor
    ) -> Self:
        """Build the mask for queries at `query_rows` (ascending); `like` gives the dtype and device.

        The query tensor passed to `attend` holds one row for each entry of `query_rows`, in the same order.
        """
        masks: list[SegmentMask] = []
        for segment in segments:
            first, last = np.searchsorted(query_rows, (segment.start, segment.stop))
            if first < last:
                positions = query_rows[first:last] - segment.start + segment.prefix_length
                tiles = _query_tiles(positions, window or int(positions[-1]) + 1, int(first), like)
                num_keys = segment.prefix_length + segment.stop - segment.start
                keys = _key_rows(segment, like.device)
                masks.append(SegmentMask(keys, _round_up(num_keys, like), tuple(tiles)))
        return cls(tuple(masks))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """See `AttentionMask`."""
        num_kv_heads = keys.shape[1]
        queries = queries.view(len(queries), num_kv_heads, -1, queries.shape[2])
        out = queries.new_empty(queries.shape)
        for mask in self.segments:
            k, v = (_pad_rows(t[mask.keys], mask.num_padded_keys).permute(1, 0, 2) for t in (keys, values))
            for tile in mask.tiles:
                tile_queries = queries[tile.queries]
                q = _pad_rows(tile_queries, len(tile.mask_bias)).permute(1, 2, 0, 3)
                attended = _attend_tile(q, k[:, tile.keys], v[:, tile.keys], tile.mask_bias, scale, softcap)
                out[tile.queries] = attended.permute(2, 0, 1, 3)[: len(tile_queries)]
        return out.flatten(1)


def _attend_tile(
    q: Tensor, k: Tensor, v: Tensor, mask_bias: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Return attention of q (G, R, n, d), R query heads per KV head, over k and v (G, T, d).

    torch's own kernel is faster in 32 bits, but it cannot cap logits.
    """
    if softcap is None and q.dtype == torch.float32:
        k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask_bias, scale=scale)
    logits = (q * scale).flatten(1, 2) @ k.mT
    if softcap is not None:
        logits = torch.tanh(logits / softcap).float() * softcap
    weights = (logits.view(*q.shape[:3], -1) + mask_bias).softmax(-1).to(v)
    return (weights.flatten(1, 2) @ v).view(q.shape)


def _query_tiles(positions: RowIndices, window: int, first_query: int, like: Tensor) -> Iterator[QueryTile]:
    """Split the queries of one segment, given by their positions in the item, into tiles.

    `first_query` is the index of the segment's first query among all queries of the mask.
    """
    for start in range(0, len(positions), QUERY_TILE_ROWS):
        tile = positions[start : start + QUERY_TILE_ROWS]
        key_start = max(int(tile[0]) + 1 - window, 0) // QUERY_TILE_ROWS * QUERY_TILE_ROWS
        key_stop = _round_up(int(tile[-1]) + 1, like)
        padded = np.pad(tile, (0, _round_up(len(tile), like) - len(tile)), mode="edge")
        distance = copy_to_device(padded[:, None] - np.arange(key_start, key_stop), like.device)
        hidden = (distance < 0) | (distance >= window)
        mask_bias = like.new_zeros(distance.shape).masked_fill_(hidden, -torch.inf)
        query = first_query + start
        yield QueryTile(slice(query, query + len(tile)), slice(key_start, key_stop), mask_bias)


def _round_up(rows: int, like: Tensor) -> int:
    """Return the number of rows after padding; torch's 32-bit kernel takes any number, so it needs none."""
    return rows if like.dtype == torch.float32 else -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _pad_rows(rows: Tensor, total: int) -> Tensor:
    """Return rows (n, ...) followed by rows of zeros, `total` rows in all."""
    return pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if (missing := total - len(rows)) else rows


def _key_rows(segment: Segment, device: torch.device) -> slice | Tensor:
    """Return the rows of a segment's keys, as a slice where they are contiguous."""
    ranges = [*segment.ancestors, (segment.start, segment.stop)]
    if all(before[1] == after[0] for before, after in pairwise(ranges)):
        return slice(ranges[0][0], segment.stop)
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in ranges])
