"""Keys and values of prompts seen lately, so that a prompt whose responses come one by one is read once.

Bounded in bytes; the prompt used longest ago goes first. Only whole prompts are kept, and any of them lends
its beginning to a prompt that begins alike. What is not finite is never kept.
"""

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.backbone.attention import Rows
from app.backbone.packing import Fill, Ids, common_prefix
from app.backbone.runtime.transfer import sent

LEAST = 16
Key = tuple[int, Ids]


@dataclass(frozen=True, slots=True)
class Known:
    """The beginning of a prompt, and its keys and values in every layer, (L, tokens, 2·G·d)."""

    ids: Ids
    values: Tensor


@dataclass(slots=True)
class Session:
    """What one pass takes from memory and leaves in it; `keep` are the rows that spell new prompts."""

    depth: int
    known: tuple[Known, ...] = ()
    keep: dict[Ids, Rows] = field(default_factory=dict)
    kept: dict[Ids, Tensor] = field(default_factory=dict)

    @property
    def spelled(self) -> list[Ids]:
        """The beginnings that are known."""
        return [one.ids for one in self.known]

    def fill(self, layer: int, fills: Sequence[Fill], row: Tensor) -> None:
        """Put what is known into the rows that stand for it."""
        for fill in fills:
            found = self.known[fill.known].values[layer, fill.start : fill.stop]
            row[fill.row : fill.row + len(found)] = found

    def note(self, layer: int, row: Tensor) -> None:
        """Take down a layer's keys and values of the prompts to keep."""
        for ids, rows in self.keep.items():
            if not layer:
                self.kept[ids] = row.new_empty(self.depth, len(rows), row.shape[1])
            torch.index_select(row, 0, sent(rows, row.device), out=self.kept[ids][layer])


class Recall:
    """The memory; any thread may ask it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._order: list[Key] = []
        self._found: OrderedDict[Key, Tensor] = OrderedDict()

    def session(self, prompts: Sequence[Ids], depth: int) -> Session:
        """What is known of these prompts for a pass of so many layers."""
        found = Session(depth)
        if self._limit:
            with self._lock:
                known = {one.ids: one for prompt in set(prompts) if (one := self._longest(prompt, depth))}
            found.known = tuple(known[ids] for ids in sorted(known))
        return found

    def unknown(self, session: Session, prompts: Sequence[Ids]) -> set[Ids]:
        """Those prompts that are worth keeping and not known to their end."""
        if not self._limit:
            return set()
        whole = {one.ids for one in session.known}
        return {prompt for prompt in prompts if len(prompt) >= LEAST and prompt not in whole}

    def keep(self, session: Session) -> None:
        """Remember what a pass has noted."""
        for ids, values in session.kept.items():
            if values.nbytes <= self._limit and bool(values.sum().isfinite()):
                with self._lock:
                    self._put((session.depth, ids), values)

    def _longest(self, prompt: Ids, depth: int) -> Known | None:
        at = bisect_left(self._order, (depth, prompt))
        near = [key for key in self._order[max(at - 1, 0) : at + 1] if key[0] == depth]
        lengths = [common_prefix(ids, prompt) for _, ids in near]
        if max(lengths, default=0) < LEAST:
            return None
        length, key = max(zip(lengths, near, strict=True))
        self._found.move_to_end(key)
        return Known(prompt[:length], self._found[key][:, :length])

    def _put(self, key: Key, values: Tensor) -> None:
        if key in self._found:
            return
        self._found[key] = values
        insort(self._order, key)
        self._size += values.nbytes
        while self._size > self._limit:
            oldest, gone = self._found.popitem(last=False)
            del self._order[bisect_left(self._order, oldest)]
            self._size -= gone.nbytes
