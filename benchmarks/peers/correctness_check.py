"""Nobody is timed who says something else: scores against what transformers makes of the same pairs."""

from collections.abc import Sequence

from benchmarks.load_generator import LoadClient
from benchmarks.peers.peer import Peer
from benchmarks.reference import Reference
from benchmarks.results_log import CorrectnessResult
from benchmarks.workloads import Query


class Gatekeeper:
    """Knows what the scores of a few pairs must be; the pairs are asked in one request, then one by one."""

    def __init__(self, reference: Reference, probes: Query) -> None:
        self._reference = reference
        self._probes = probes
        self._known: dict[str, list[float]] = {}

    def prepare(self, peer: Peer) -> None:
        """Find out what the scores must be, before a server takes the machine."""
        self._wanted(peer)

    async def check(self, peer: Peer, caller: LoadClient, round_: int) -> CorrectnessResult:
        """How far off a peer is at most."""
        together = await caller.scores(self._probes)
        alone = [score for pair in self._probes for score in await caller.scores((pair,))]
        wanted = self._wanted(peer)
        worst = max(_furthest(together, wanted), _furthest(alone, wanted))
        return CorrectnessResult(peer.name, round_, worst, peer.tolerance)

    def _wanted(self, peer: Peer) -> list[float]:
        key = peer.reward_model or str(peer.server.depth)
        if key not in self._known:
            self._known[key] = (
                self._reference.rewards(peer.reward_model, self._probes)
                if peer.reward_model
                else self._reference.classifier_scores(peer.server.depth, self._probes)
            )
        return self._known[key]


def _furthest(found: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))
