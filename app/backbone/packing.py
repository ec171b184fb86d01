"""Packs items (tuples of token ids) into one flat row in which each shared prefix is stored once.

In sorted order, each item shares its longest prefix with the item before it. So no token trie has to be
built: an item adds one segment, its new tokens, which attend to the rows of its predecessor before them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TokenIds = tuple[int, ...]
RowRange = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens in rows [start, stop), and the ranges of earlier rows they also attend to."""

    start: int
    stop: int
    ancestors: tuple[RowRange, ...]

    @property
    def prefix_length(self) -> int:
        """The number of tokens of the item before the first new one."""
        return sum(stop - start for start, stop in self.ancestors)


class PrefixCopy(NamedTuple):
    """Tokens [start, stop) of the cached prefix number `prefix` occupy the rows from `row` on."""

    prefix: int
    start: int
    stop: int
    row: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The input of one forward pass; `item_ranges[i]` are the row ranges that hold the tokens of item i.

    The first `num_cached_rows` rows hold tokens of cached prefixes, which are not computed; `ids` and
    `positions` describe the rows after them. `new_tokens[i]` is the number of tokens computed for item i.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: tuple[Segment, ...]
    item_ranges: tuple[tuple[RowRange, ...], ...]
    new_tokens: tuple[int, ...]
    num_cached_rows: int = 0
    prefix_copies: tuple[PrefixCopy, ...] = ()

    @property
    def computed_rows(self) -> NDArray[np.int64]:
        """All rows that are computed, that is, not copied from the prefix cache."""
        return np.arange(self.num_cached_rows, self.num_cached_rows + len(self.ids))

    def rows(self, item: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of tokens [start, stop) of an item."""
        ranges = _slice(self.item_ranges[item], start, stop)
        return np.concatenate([np.arange(a, b) for a, b in ranges])


def pack(items: Sequence[TokenIds], cached_prefixes: Sequence[TokenIds] = ()) -> PackedBatch:
    """Pack the items into one row; shared prefixes are computed once and cached prefixes not at all."""
    sequences = [*items, *cached_prefixes]
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    copies: list[PrefixCopy] = []
    ranges: list[tuple[RowRange, ...]] = [()] * len(sequences)
    new_tokens = [0] * len(sequences)
    next_cached_row, num_cached_rows = 0, sum(map(len, cached_prefixes))
    previous: TokenIds = ()
    path: tuple[RowRange, ...] = ()
    for i in sorted(range(len(sequences)), key=lambda i: (sequences[i], i < len(items))):
        shared, stop = common_prefix_length(previous, sequences[i]), len(sequences[i])
        path = _slice(path, 0, shared)
        if shared < stop and i >= len(items):
            copies.append(PrefixCopy(i - len(items), shared, stop, next_cached_row))
            path = _join(path, (next_cached_row, next_cached_row := next_cached_row + stop - shared))
        elif shared < stop:
            start = num_cached_rows + len(ids)
            segments.append(Segment(start, start + stop - shared, path))
            path = _join(path, (start, start + stop - shared))
            ids.extend(sequences[i][shared:])
            positions.extend(range(shared, stop))
        previous, ranges[i], new_tokens[i] = sequences[i], path, stop - shared
    return PackedBatch(
        np.array(ids), np.array(positions), tuple(segments), tuple(ranges[: len(items)]),
        tuple(new_tokens[: len(items)]), num_cached_rows, tuple(copies),
    )  # fmt: skip


def pad_batch(packed: PackedBatch, rows: int) -> PackedBatch:
    """Return the batch with `rows` computed rows; the padding rows form a segment that no item uses."""
    padding = np.arange(rows - len(packed.ids))
    if not len(padding):
        return packed
    start = packed.num_cached_rows + len(packed.ids)
    return replace(
        packed,
        ids=np.concatenate([packed.ids, np.zeros_like(padding)]),
        positions=np.concatenate([packed.positions, padding]),
        segments=(*packed.segments, Segment(start, start + len(padding), ())),
    )


def split_into_batches(items: Sequence[TokenIds], max_tokens: int) -> Iterator[list[int]]:
    """Yield lists of item indices, each of at most `max_tokens` new tokens, in token order.

    So items that share a prefix are neighbours. An item longer than `max_tokens` gets a batch of its own.
    """
    batch: list[int] = []
    size = 0
    for i in sorted(range(len(items)), key=items.__getitem__):
        new = len(items[i]) - (common_prefix_length(items[batch[-1]], items[i]) if batch else 0)
        if batch and size + new > max_tokens:
            yield batch
            batch, size, new = [], 0, len(items[i])
        batch.append(i)
        size += new
    if batch:
        yield batch


def common_prefix_length(left: TokenIds, right: TokenIds) -> int:
    """Return the number of leading ids two items share, by bisection over slices, which are compared in C."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


class PackedTokenCounter:
    """Counts the new tokens of a batch while items are added to it."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._items: list[TokenIds] = []

    def count_new_tokens(self, ids: TokenIds) -> int:
        """Return the number of tokens after the longest prefix that an item shares with the batch."""
        index = bisect_left(self._items, ids)
        shared = [common_prefix_length(other, ids) for other in self._items[max(index - 1, 0) : index + 1]]
        return len(ids) - max(shared, default=0)

    def add(self, ids: TokenIds) -> None:
        """Add an item to the batch."""
        self.num_tokens += self.count_new_tokens(ids)
        insort(self._items, ids)


def _slice(path: tuple[RowRange, ...], start: int, stop: int) -> tuple[RowRange, ...]:
    """Return the row ranges of positions [start, stop) of an item whose rows are `path`."""
    ranges: list[RowRange] = []
    offset = 0
    for first, last in path:
        low, high = max(start - offset, 0), min(stop - offset, last - first)
        if low < high:
            ranges.append((first + low, first + high))
        offset += last - first
    return tuple(ranges)


def _join(path: tuple[RowRange, ...], rows: RowRange) -> tuple[RowRange, ...]:
    """Return a path with one more row range, merged with the last one where the rows are adjacent."""
    if path and path[-1][1] == rows[0]:
        return (*path[:-1], (path[-1][0], rows[1]))
    return (*path, rows)
