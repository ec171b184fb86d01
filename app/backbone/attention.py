"""Attention over a packed row: every segment sees its ancestors and itself, nothing else of the row.

What a segment may see is worked out once a pass and used by every layer that looks as far back. oneDNN keeps
a kernel for good for every shape that it has met in 16 bits, so queries and keys come in few numbers.
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
from app.backbone.runtime.transfer import sent

Rows = NDArray[np.int64]
STRIP, STEP = 128, 32


class Sight(Protocol):
    """What the queries of a pass may see, and attention by it."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """(Q, H·d) attention of queries (Q, H, d) over keys and values (T, G, d), G groups of heads."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A few queries, the keys that any of them sees and few others, and -inf where one does not see one.

    The veil has room for more of both, which are nobody's.
    """

    queries: slice
    keys: slice
    veil: Tensor


@dataclass(frozen=True, slots=True)
class View:
    """The rows of the keys of one segment, the room they take, and its queries in strips."""

    keys: slice | Tensor
    room: int
    strips: tuple[Strip, ...]


@dataclass(frozen=True, slots=True)
class Views:
    """A sight in pieces, one segment after the other: what suits few cores and no launch costs."""

    pieces: tuple[View, ...]

    @classmethod
    def of(cls, segments: Iterable[Segment], window: int | None, read: Rows, like: Tensor) -> Self:
        """What the queries at the rows in `read`, which lie side by side, attend to."""
        pieces: list[View] = []
        for segment in segments:
            first, last = np.searchsorted(read, (segment.start, segment.stop))
            if first < last:
                places = read[first:last] - segment.start + segment.depth
                strips = _strips(places, window or int(places[-1]) + 1, int(first), like)
                room = _room(segment.depth + segment.stop - segment.start, like)
                pieces.append(View(_keys(segment, like.device), room, tuple(strips)))
        return cls(tuple(pieces))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """See `Sight`."""
        groups = keys.shape[1]
        queries = queries.view(len(queries), groups, -1, queries.shape[2])
        out = queries.new_empty(queries.shape)
        for view in self.pieces:
            k, v = (_laid(t[view.keys], view.room).permute(1, 0, 2) for t in (keys, values))
            for strip in view.strips:
                few = queries[strip.queries]
                q = _laid(few, len(strip.veil)).permute(1, 2, 0, 3)
                seen = _seen(q, k[:, strip.keys], v[:, strip.keys], strip.veil, scale, softcap)
                out[strip.queries] = seen.permute(2, 0, 1, 3)[: len(few)]
        return out.flatten(1)


def _seen(q: Tensor, k: Tensor, v: Tensor, veil: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Attention of (G, R, n, d) over (G, T, d); torch's kernel wins in 32 bits, and caps no logits."""
    if softcap is None and q.dtype == torch.float32:
        k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=veil, scale=scale)
    logits = (q * scale).flatten(1, 2) @ k.mT
    if softcap is not None:
        logits = torch.tanh(logits / softcap).float() * softcap
    weights = (logits.view(*q.shape[:3], -1) + veil).softmax(-1).to(v)
    return (weights.flatten(1, 2) @ v).view(q.shape)


def _strips(places: Rows, window: int, first: int, like: Tensor) -> Iterator[Strip]:
    """Queries at these places of their items, the first of them at a row of its own among all queries."""
    for start in range(0, len(places), STRIP):
        some = places[start : start + STRIP]
        nearest, furthest = max(int(some[0]) + 1 - window, 0) // STRIP * STRIP, _room(int(some[-1]) + 1, like)
        shown = np.pad(some, (0, _room(len(some), like) - len(some)), mode="edge")
        back = sent(shown[:, None] - np.arange(nearest, furthest), like.device)
        veil = like.new_zeros(back.shape).masked_fill_((back < 0) | (back >= window), -torch.inf)
        at = first + start
        yield Strip(slice(at, at + len(some)), slice(nearest, furthest), veil)


def _room(rows: int, like: Tensor) -> int:
    """What so many rows are rounded up to; torch's kernel for 32 bits takes any number."""
    return rows if like.dtype == torch.float32 else -(-rows // STEP) * STEP


def _laid(rows: Tensor, room: int) -> Tensor:
    """Rows (n, ...) with zeros after them, up to so many."""
    return pad(rows, (0, 0) * (rows.ndim - 1) + (0, short)) if (short := room - len(rows)) else rows


def _keys(segment: Segment, device: torch.device) -> slice | Tensor:
    runs = [*segment.ancestors, (segment.start, segment.stop)]
    if all(before[1] == after[0] for before, after in pairwise(runs)):
        return slice(runs[0][0], segment.stop)
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])
