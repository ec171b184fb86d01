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

from app.backbone.attention import RowIndices
from app.backbone.packing import PrefixCopy, TokenIds, common_prefix_length
from app.backbone.runtime.transfer import copy_to_device

MIN_PREFIX_TOKENS = 16
Key = tuple[int, TokenIds]


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The beginning of a prompt, and its keys and values in every layer, (L, tokens, 2·G·d)."""

    ids: TokenIds
    kv: Tensor


@dataclass(slots=True)
class PrefixCacheLookup:
    """What one pass takes from memory and leaves in it; `keep` are the rows that spell new prompts."""

    num_layers: int
    prefixes: tuple[CachedPrefix, ...] = ()
    rows_to_store: dict[TokenIds, RowIndices] = field(default_factory=dict)
    new_entries: dict[TokenIds, Tensor] = field(default_factory=dict)

    @property
    def prefix_ids(self) -> list[TokenIds]:
        """The beginnings that are known."""
        return [one.ids for one in self.prefixes]

    def copy_prefixes(self, layer: int, fills: Sequence[PrefixCopy], row: Tensor) -> None:
        """Put what is known into the rows that stand for it."""
        for fill in fills:
            found = self.prefixes[fill.prefix].kv[layer, fill.start : fill.stop]
            row[fill.row : fill.row + len(found)] = found

    def collect_new_entries(self, layer: int, row: Tensor) -> None:
        """Take down a layer's keys and values of the prompts to keep."""
        for ids, rows in self.rows_to_store.items():
            if not layer:
                self.new_entries[ids] = row.new_empty(self.num_layers, len(rows), row.shape[1])
            torch.index_select(row, 0, copy_to_device(rows, row.device), out=self.new_entries[ids][layer])


class PrefixCache:
    """The memory; any thread may ask it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._order: list[Key] = []
        self._found: OrderedDict[Key, Tensor] = OrderedDict()

    def lookup(self, prompts: Sequence[TokenIds], depth: int) -> PrefixCacheLookup:
        """What is known of these prompts for a pass of so many layers."""
        found = PrefixCacheLookup(depth)
        if self._limit:
            with self._lock:
                known = {one.ids: one for prompt in set(prompts) if (one := self._longest(prompt, depth))}
            found.prefixes = tuple(known[ids] for ids in sorted(known))
        return found

    def find_missing(self, session: PrefixCacheLookup, prompts: Sequence[TokenIds]) -> set[TokenIds]:
        """Those prompts that are worth keeping and not known to their end."""
        if not self._limit:
            return set()
        whole = {one.ids for one in session.prefixes}
        return {prompt for prompt in prompts if len(prompt) >= MIN_PREFIX_TOKENS and prompt not in whole}

    def store(self, session: PrefixCacheLookup) -> None:
        """Remember what a pass has noted."""
        for ids, values in session.new_entries.items():
            if values.nbytes <= self._limit and bool(values.sum().isfinite()):
                with self._lock:
                    self._put((session.num_layers, ids), values)

    def _longest(self, prompt: TokenIds, depth: int) -> CachedPrefix | None:
        at = bisect_left(self._order, (depth, prompt))
        near = [key for key in self._order[max(at - 1, 0) : at + 1] if key[0] == depth]
        lengths = [common_prefix_length(ids, prompt) for _, ids in near]
        if max(lengths, default=0) < MIN_PREFIX_TOKENS:
            return None
        length, key = max(zip(lengths, near, strict=True))
        self._found.move_to_end(key)
        return CachedPrefix(prompt[:length], self._found[key][:, :length])

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
