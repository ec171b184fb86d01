"""Routes a request to the server that has computed most of its text before, unless that one is far busier.

Texts are identified by chained hashes of their blocks, so requests with a common prefix are recognised in
every adapter's format, without parsing JSON. The bytes that a server would have to compute anew are weighed
against the bytes that wait there.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?', re.DOTALL)  # a JSON string, maybe cut off at its end
# How much of a body is hashed; longer ones are routed by their beginning.
MAX_HASHED_BYTES = 2**18
BLOCK_BYTES = 32
# How many blocks are remembered of each server.
MAX_BLOCKS_PER_SERVER = 2**13
# Computing a text anew costs as much as waiting behind four texts of its length.
RECOMPUTE_COST = 4


@dataclass(frozen=True, slots=True)
class RequestTexts:
    """The size of a request's body, and the chained hashes of the blocks of its strings."""

    size: int
    blocks: tuple[int, ...] = ()


def hash_texts(body: bytes) -> RequestTexts:
    """Return the size of a body and the hashes of its strings' blocks."""
    blocks = (block for match in STRING.finditer(body[:MAX_HASHED_BYTES]) for block in _hash_blocks(match[1]))
    return RequestTexts(len(body) + 1, tuple(blocks))


class PrefixRouter:
    """Remembers which blocks each server has computed lately, and how many bytes it is busy with."""

    def __init__(self) -> None:
        self._computed: dict[str, OrderedDict[int, None]] = {}
        self._busy: Counter[str] = Counter()
        self._assigned: Counter[str] = Counter()

    def rank(self, texts: RequestTexts, servers: Collection[str]) -> list[str]:
        """Return the servers, best first; equal ones are ordered by the bytes assigned to them so far."""
        costs = {name: self._busy[name] + RECOMPUTE_COST * self._new_bytes(texts, name) for name in servers}
        return sorted(servers, key=lambda name: (costs[name], self._assigned[name]))

    def start_request(self, texts: RequestTexts, name: str) -> int:
        """Assign a request to a server; return the bytes it is busy with until `finish_request`."""
        new_bytes = self._new_bytes(texts, name)
        self._busy[name] += new_bytes
        self._assigned[name] += new_bytes
        computed = self._computed.setdefault(name, OrderedDict())
        for block in texts.blocks:
            computed[block] = None
            computed.move_to_end(block)
        while len(computed) > MAX_BLOCKS_PER_SERVER:
            computed.popitem(last=False)
        return new_bytes

    def finish_request(self, name: str, new_bytes: int) -> None:
        """Record that a server has answered a request."""
        self._busy[name] -= new_bytes

    def set_servers(self, names: Collection[str]) -> None:
        """Forget the servers that are not in `names`; a new one starts with the fewest assigned bytes."""
        for removed in self._assigned.keys() - set(names):
            for state in (self._computed, self._busy, self._assigned):
                state.pop(removed, None)
        least = min((self._assigned[name] for name in names if name in self._assigned), default=0)
        for name in names:
            self._assigned.setdefault(name, least)

    def _new_bytes(self, texts: RequestTexts, name: str) -> int:
        """Return how many bytes of a request a server would have to compute anew."""
        computed: Mapping[int, None] = self._computed.get(name, {})
        return texts.size - BLOCK_BYTES * sum(block in computed for block in texts.blocks)


def _hash_blocks(text: bytes) -> list[int]:
    """Return a hash of every prefix of a text that consists of whole blocks."""
    hashes: list[int] = []
    prefix_hash = 0
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        prefix_hash = hash((prefix_hash, text[start : start + BLOCK_BYTES]))
        hashes.append(prefix_hash)
    return hashes
