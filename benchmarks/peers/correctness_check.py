"""Checks a peer's scores against transformers' scores of the same items; a peer that fails is not timed."""

from collections.abc import Sequence

from benchmarks.load_generator import LoadClient
from benchmarks.peers.peer import Peer
from benchmarks.reference import Reference
from benchmarks.results_log import CorrectnessResult
from benchmarks.workloads import Query


class CorrectnessChecker:
    """Holds probe items and their expected scores; a peer scores them in one request, then one by one."""

    def __init__(self, reference: Reference, probes: Query) -> None:
        self._reference = reference
        self._probes = probes
        self._expected_by_key: dict[str, list[float]] = {}

    def compute_expected(self, peer: Peer) -> None:
        """Compute the expected scores of a peer, before a server uses the machine."""
        self._expected(peer)

    async def check(self, peer: Peer, client: LoadClient, round_: int) -> CorrectnessResult:
        """The largest difference between the peer's scores and the expected ones."""
        in_one_request = await client.scores(self._probes)
        one_by_one = [score for item in self._probes for score in await client.scores((item,))]
        expected = self._expected(peer)
        worst = max(_max_difference(in_one_request, expected), _max_difference(one_by_one, expected))
        return CorrectnessResult(peer.name, round_, worst, peer.tolerance)

    def _expected(self, peer: Peer) -> list[float]:
        key = peer.reward_model or str(peer.server.depth)
        if key not in self._expected_by_key:
            self._expected_by_key[key] = (
                self._reference.rewards(peer.reward_model, self._probes)
                if peer.reward_model
                else self._reference.classifier_scores(peer.server.depth, self._probes)
            )
        return self._expected_by_key[key]


def _max_difference(scores: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(scores, expected, strict=True))
