"""Which of several servers a request should meet: one that has read its texts, unless it is far busier.

Texts are known by chained hashes of their blocks: whatever begins alike is found, in every dialect, without
reading JSON. What a server would have to read anew is weighed against the bytes that wait there.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

TEXT = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?', re.DOTALL)
HEAD, BLOCK, KEPT = 2**18, 32, 2**13
STICKY = 4  # reading a text once more is as bad as waiting for four of its length


@dataclass(frozen=True, slots=True)
class Texts:
    """The length of a body, and a hash of all that its texts begin with, block by block."""

    size: int
    blocks: tuple[int, ...] = ()


def texts(body: bytes) -> Texts:
    """What a body holds; long ones are judged by their beginning."""
    return Texts(
        len(body) + 1, tuple(one for found in TEXT.finditer(body[:HEAD]) for one in _chain(found[1]))
    )


class Affinity:
    """What each server has read lately, and what it is busy with."""

    def __init__(self) -> None:
        self._read: dict[str, OrderedDict[int, None]] = {}
        self._busy: Counter[str] = Counter()
        self._given: Counter[str] = Counter()

    def ranked(self, one: Texts, among: Collection[str]) -> list[str]:
        """The servers, the best first; of equal ones the one that has had the least."""
        costs = {name: self._busy[name] + STICKY * self._new(one, name) for name in among}
        return sorted(among, key=lambda name: (costs[name], self._given[name]))

    def begin(self, one: Texts, name: str) -> int:
        """A server gets a request; how many bytes that keeps it busy with, until `end`."""
        new = self._new(one, name)
        self._busy[name] += new
        self._given[name] += new
        read = self._read.setdefault(name, OrderedDict())
        for block in one.blocks:
            read[block] = None
            read.move_to_end(block)
        while len(read) > KEPT:
            read.popitem(last=False)
        return new

    def end(self, name: str, new: int) -> None:
        """A server has answered."""
        self._busy[name] -= new

    def keep(self, names: Collection[str]) -> None:
        """These are all there are; a newcomer has had as little as anybody."""
        for gone in self._given.keys() - set(names):
            for noted in (self._read, self._busy, self._given):
                noted.pop(gone, None)
        least = min((self._given[name] for name in names if name in self._given), default=0)
        for name in names:
            self._given.setdefault(name, least)

    def _new(self, one: Texts, name: str) -> int:
        read: Mapping[int, None] = self._read.get(name, {})
        return one.size - BLOCK * sum(block in read for block in one.blocks)


def _chain(text: bytes) -> list[int]:
    """A hash of every beginning of a text, in whole blocks."""
    found: list[int] = []
    before = 0
    for at in range(0, len(text) - BLOCK + 1, BLOCK):
        before = hash((before, text[at : at + BLOCK]))
        found.append(before)
    return found
