"""Attention over a packed row: every segment sees its ancestors and itself, nothing else of the row.

What a segment may see is worked out once a pass and used by every layer that looks as far back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.model.packing import Segment

Rows = NDArray[np.int64]


class Sight(Protocol):
    """What the queries of a pass may see, and attention by it."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """(Q, H·d) attention of queries (Q, H, d) over keys and values (T, G, d), G groups of heads."""


@dataclass(frozen=True, slots=True)
class View:
    """Some queries of one segment, the rows of its keys, and which of them each query may see.

    Without a mask query i sees keys 0 to i.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Views:
    """A sight in pieces, one segment after the other: what suits few cores and no launch costs."""

    pieces: tuple[View, ...]

    @classmethod
    def of(cls, segments: Iterable[Segment], window: int | None, read: Rows, device: torch.device) -> Self:
        """What the queries at the rows in `read`, which lie side by side, attend to."""
        pieces: list[View] = []
        for segment in segments:
            first, last = np.searchsorted(read, (segment.start, segment.stop))
            if first < last:
                pieces.append(_view(segment, window, read[first:last], int(first), device))
        return cls(tuple(pieces))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """See `Sight`."""
        groups = keys.shape[1]
        queries = queries.view(len(queries), groups, -1, queries.shape[2])
        out = queries.new_empty(queries.shape)
        for view in self.pieces:
            q = queries[view.queries].permute(1, 2, 0, 3)
            lent = [t[view.keys].permute(1, 0, 2)[:, None] for t in (keys, values)]
            k, v = (t.expand(-1, q.shape[1], -1, -1) for t in lent)
            if softcap is None:
                seen = scaled_dot_product_attention(
                    q, k, v, attn_mask=view.mask, is_causal=view.mask is None, scale=scale
                )
            else:
                seen = _capped(q, k, v, view.mask, scale, softcap)
            out[view.queries] = seen.permute(2, 0, 1, 3)
        return out.flatten(1)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention whose logits are squashed into ±softcap, which no fused kernel of torch's does."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    logits = torch.tanh(q @ k.mT * (scale / softcap)).float() * softcap
    weights = torch.softmax(logits.masked_fill_(~mask, -torch.inf), -1)
    return weights.to(v) @ v


def _view(segment: Segment, window: int | None, read: Rows, first: int, device: torch.device) -> View:
    length = segment.depth + segment.stop - segment.start
    places = read - segment.start + segment.depth
    queries = slice(first, first + len(places))
    reach = min(window or length, length)
    mask = None
    if reach < length or len(places) < length:
        back = torch.from_numpy(places).to(device)[:, None] - torch.arange(length, device=device)
        mask = (back >= 0) & (back < reach)
    return View(queries, _keys(segment, device), mask)


def _keys(segment: Segment, device: torch.device) -> slice | Tensor:
    runs = [*segment.ancestors, (segment.start, segment.stop)]
    if all(before[1] == after[0] for before, after in pairwise(runs)):
        return slice(runs[0][0], segment.stop)
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])
