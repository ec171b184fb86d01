"""Attention over a packed row: every segment sees its ancestors and itself, nothing else of the row.

What a segment may see is worked out once a pass and used by every layer that looks as far back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.model.packing import Segment

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class View:
    """Some queries of one segment, the rows of its keys, and which of them each query may see.

    Without a mask query i sees keys 0 to i.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor | None


def views(segments: Iterable[Segment], window: int | None, read: Rows, device: torch.device) -> list[View]:
    """What the queries at the rows in `read`, which lie side by side, attend to; one view a segment."""
    found: list[View] = []
    for segment in segments:
        first, last = np.searchsorted(read, (segment.start, segment.stop))
        if first < last:
            found.append(_view(segment, window, read[first:last], int(first), device))
    return found


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, views: list[View], scale: float, softcap: float | None
) -> Tensor:
    """(Q, H·d) attention of queries (Q, H, d) over keys and values (T, G, d), G groups of heads."""
    groups = keys.shape[1]
    queries = queries.view(len(queries), groups, -1, queries.shape[2])
    out = queries.new_empty(queries.shape)
    for view in views:
        q = queries[view.queries].permute(1, 2, 0, 3)
        k, v = (t[view.keys].permute(1, 0, 2)[:, None].expand(-1, q.shape[1], -1, -1) for t in (keys, values))
        seen = _capped(q, k, v, view.mask, scale, softcap) if softcap else _plain(q, k, v, view.mask, scale)
        out[view.queries] = seen.permute(2, 0, 1, 3)
    return out.flatten(1)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)


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
