"""list of token ids → Packed: one flat row in which every prefix that items share stands once.

Sorted by ids, each item shares its longest prefix with the item before it. So the token trie never
has to be built: an item adds one segment, its new tokens, and sees the row of its predecessor before it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]
Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens [start, stop) of the flat row, and the runs of rows they attend to before themselves."""

    start: int
    stop: int
    ancestors: tuple[Run, ...]

    @property
    def depth(self) -> int:
        """Tokens before the first new one."""
        return sum(stop - start for start, stop in self.ancestors)


class Fill(NamedTuple):
    """Tokens [start, stop) of a known beginning stand in the rows from `row` on."""

    known: int
    start: int
    stop: int
    row: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as the backbone takes it; `paths[i]` are the runs of rows that spell item i.

    The first `before` rows stand for what is known already; `ids` and `positions` are of those after them.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: tuple[Segment, ...]
    paths: tuple[tuple[Run, ...], ...]
    new_tokens: tuple[int, ...]
    before: int = 0
    fills: tuple[Fill, ...] = ()

    @property
    def everything(self) -> NDArray[np.int64]:
        """Every row that is computed."""
        return np.arange(self.before, self.before + len(self.ids))

    def rows(self, item: int, start: int, stop: int) -> NDArray[np.int64]:
        """Flat rows of tokens [start, stop) of an item."""
        runs = _slice(self.paths[item], start, stop)
        return np.concatenate([np.arange(a, b) for a, b in runs])


def pack(items: Sequence[Ids], known: Sequence[Ids] = ()) -> Packed:
    """Lay the items out in one row, computing no shared prefix twice and no known beginning at all."""
    everything = [*items, *known]
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    fills: list[Fill] = []
    paths: list[tuple[Run, ...]] = [()] * len(everything)
    new_tokens = [0] * len(everything)
    filled, before = 0, sum(map(len, known))
    last: Ids = ()
    path: tuple[Run, ...] = ()
    for item in sorted(range(len(everything)), key=lambda i: (everything[i], i < len(items))):
        shared, stop = common_prefix(last, everything[item]), len(everything[item])
        path = _slice(path, 0, shared)
        if shared < stop and item >= len(items):
            fills.append(Fill(item - len(items), shared, stop, filled))
            path = _join(path, (filled, filled := filled + stop - shared))
        elif shared < stop:
            start = before + len(ids)
            segments.append(Segment(start, start + stop - shared, path))
            path = _join(path, (start, start + stop - shared))
            ids.extend(everything[item][shared:])
            positions.extend(range(shared, stop))
        last, paths[item], new_tokens[item] = everything[item], path, stop - shared
    return Packed(
        np.array(ids), np.array(positions), tuple(segments), tuple(paths[: len(items)]),
        tuple(new_tokens[: len(items)]), before, tuple(fills),
    )  # fmt: skip


def filled(packed: Packed, rows: int) -> Packed:
    """The same with so many rows to compute: the last spell an item that nobody reads."""
    extra = np.arange(rows - len(packed.ids))
    if not len(extra):
        return packed
    start = packed.before + len(packed.ids)
    return replace(
        packed,
        ids=np.concatenate([packed.ids, np.zeros_like(extra)]),
        positions=np.concatenate([packed.positions, extra]),
        segments=(*packed.segments, Segment(start, start + len(extra), ())),
    )


def passes(items: Sequence[Ids], budget: int) -> Iterator[list[int]]:
    """Places of items in lists of at most `budget` new tokens each, neighbours in token order together."""
    batch: list[int] = []
    size = 0
    for i in sorted(range(len(items)), key=items.__getitem__):
        fresh = len(items[i]) - (common_prefix(items[batch[-1]], items[i]) if batch else 0)
        if batch and size + fresh > budget:
            yield batch
            batch, size, fresh = [], 0, len(items[i])
        batch.append(i)
        size += fresh
    if batch:
        yield batch


def common_prefix(left: Ids, right: Ids) -> int:
    """How many leading ids two items share, by bisection over slices compared in C."""
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


class Trie:
    """The size of a batch as it grows: how many tokens each further item would add to the row."""

    def __init__(self) -> None:
        self.size = 0
        self._items: list[Ids] = []

    def cost(self, ids: Ids) -> int:
        """New tokens: those beyond the longest prefix shared with a neighbour in sorted order."""
        at = bisect_left(self._items, ids)
        shared = [common_prefix(other, ids) for other in self._items[max(at - 1, 0) : at + 1]]
        return len(ids) - max(shared, default=0)

    def add(self, ids: Ids) -> None:
        """Take an item in."""
        self.size += self.cost(ids)
        insort(self._items, ids)


def _slice(path: tuple[Run, ...], start: int, stop: int) -> tuple[Run, ...]:
    """The runs that spell positions [start, stop) of a path."""
    runs: list[Run] = []
    offset = 0
    for first, last in path:
        low, high = max(start - offset, 0), min(stop - offset, last - first)
        if low < high:
            runs.append((first + low, first + high))
        offset += last - first
    return tuple(runs)


def _join(path: tuple[Run, ...], run: Run) -> tuple[Run, ...]:
    """A path with one more run, merged where rows are neighbours."""
    if path and path[-1][1] == run[0]:
        return (*path[:-1], (path[-1][0], run[1]))
    return (*path, run)
