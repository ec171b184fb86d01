"""Caches keys and values of recent prompts, so that a prompt is computed once for responses sent one by one.

The cache is bounded in bytes and evicts the least recently used prompt. Each entry is a whole prompt; a
lookup may use the beginning of an entry for another prompt with the same prefix. Entries that hold NaN or
infinity are never stored.
"""

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from app.backbone.attention import RowIndices
from app.backbone.packing import PrefixCopy, TokenIds, common_prefix_length
from app.backbone.runtime.transfer import copy_to_device

MIN_PREFIX_TOKENS = 16
Key = tuple[int, TokenIds]


class PrefixQuery(NamedTuple):
    """The token ids of an item. Residuals are needed from token `first_read` on: these are computed."""

    ids: TokenIds
    first_read: int


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The beginning of a prompt, and its keys and values in every layer, (L, tokens, 2·G·d)."""

    ids: TokenIds
    kv: Tensor

    def cut(self, length: int) -> "CachedPrefix":
        """Return the first `length` tokens of the prefix."""
        return CachedPrefix(self.ids[:length], self.kv[:, :length])


@dataclass(slots=True)
class PrefixCacheLookup:
    """The cached prefixes that one forward pass reads, and the new prompts whose KV it collects.

    `num_layers` is the number of layers the forward pass runs. `rows_to_store` maps each new prompt to the
    rows that hold its tokens; `new_entries` receives its keys and values, layer by layer.
    """

    num_layers: int
    prefixes: tuple[CachedPrefix, ...] = ()
    rows_to_store: dict[TokenIds, RowIndices] = field(default_factory=dict)
    new_entries: dict[TokenIds, Tensor] = field(default_factory=dict)

    @property
    def prefix_ids(self) -> list[TokenIds]:
        """The token ids of the cached prefixes."""
        return [prefix.ids for prefix in self.prefixes]

    def copy_prefixes(self, layer: int, copies: Sequence[PrefixCopy], kv: Tensor) -> None:
        """Copy cached keys and values of one layer into the rows of `kv` reserved for them."""
        for copy in copies:
            cached = self.prefixes[copy.prefix].kv[layer, copy.start : copy.stop]
            kv[copy.row : copy.row + len(cached)] = cached

    def collect_new_entries(self, layer: int, kv: Tensor) -> None:
        """Copy one layer's keys and values of the prompts in `rows_to_store`; layer 0 must come first."""
        for ids, rows in self.rows_to_store.items():
            if not layer:
                self.new_entries[ids] = kv.new_empty(self.num_layers, len(rows), kv.shape[1])
            torch.index_select(kv, 0, copy_to_device(rows, kv.device), out=self.new_entries[ids][layer])


class PrefixCache:
    """A thread-safe LRU cache of at most `max_bytes` bytes; 0 disables it.

    Entries are keyed by number of layers and prompt, so a lookup never returns an entry that lacks layers.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._lock = threading.Lock()
        self._sorted_keys: list[Key] = []
        self._entries: OrderedDict[Key, Tensor] = OrderedDict()

    def lookup(self, items: Sequence[PrefixQuery], num_layers: int) -> PrefixCacheLookup:
        """Find the longest cached prefix of each item for a forward pass of `num_layers` layers.

        Prefixes are cut before any token whose residual an item of the batch needs.
        """
        result = PrefixCacheLookup(num_layers)
        if self._max_bytes:
            with self._lock:
                unread = {item.ids[: item.first_read] for item in items}
                matches = [self._find_longest(ids, num_layers) for ids in unread]
            result.prefixes = _cut_at_read_tokens([match for match in matches if match], items)
        return result

    def find_missing(self, lookup: PrefixCacheLookup, prompts: Sequence[TokenIds]) -> set[TokenIds]:
        """Return the prompts that are long enough to cache and are not cached in full."""
        if not self._max_bytes:
            return set()
        cached = {prefix.ids for prefix in lookup.prefixes}
        long_enough = {prompt for prompt in prompts if len(prompt) >= MIN_PREFIX_TOKENS}
        with self._lock:
            return {ids for ids in long_enough - cached if (lookup.num_layers, ids) not in self._entries}

    def store(self, lookup: PrefixCacheLookup) -> None:
        """Store the entries that a forward pass has collected."""
        for ids, kv in lookup.new_entries.items():
            if kv.nbytes <= self._max_bytes and bool(kv.sum().isfinite()):
                with self._lock:
                    self._insert((lookup.num_layers, ids), kv)

    def _find_longest(self, prompt: TokenIds, num_layers: int) -> CachedPrefix | None:
        index = bisect_left(self._sorted_keys, (num_layers, prompt))
        neighbours = [key for key in self._sorted_keys[max(index - 1, 0) : index + 1] if key[0] == num_layers]
        lengths = [common_prefix_length(ids, prompt) for _, ids in neighbours]
        if max(lengths, default=0) < MIN_PREFIX_TOKENS:
            return None
        length, key = max(zip(lengths, neighbours, strict=True))
        self._entries.move_to_end(key)
        return CachedPrefix(prompt[:length], self._entries[key][:, :length])

    def _insert(self, key: Key, kv: Tensor) -> None:
        if key in self._entries:
            return
        self._entries[key] = kv
        insort(self._sorted_keys, key)
        self._size += kv.nbytes
        while self._size > self._max_bytes:
            oldest_key, evicted = self._entries.popitem(last=False)
            del self._sorted_keys[bisect_left(self._sorted_keys, oldest_key)]
            self._size -= evicted.nbytes


def _cut_at_read_tokens(
    prefixes: Sequence[CachedPrefix], items: Sequence[PrefixQuery]
) -> tuple[CachedPrefix, ...]:
    """Return the prefixes, each cut before the first of its tokens that an item reads, in token order."""
    by_ids = {prefix.ids: prefix for prefix in prefixes}
    sorted_ids = sorted(by_ids)
    lengths = {ids: len(ids) for ids in sorted_ids}
    for item in items:
        for ids in _starting_with(item.ids[: item.first_read + 1], sorted_ids):
            lengths[ids] = min(lengths[ids], item.first_read)
    cut = {ids[:length]: by_ids[ids].cut(length) for ids, length in lengths.items() if length}
    return tuple(cut[ids] for ids in sorted(cut))


def _starting_with(beginning: TokenIds, sorted_ids: Sequence[TokenIds]) -> Iterator[TokenIds]:
    following = islice(sorted_ids, bisect_left(sorted_ids, beginning), None)
    return takewhile(lambda ids: ids[: len(beginning)] == beginning, following)
