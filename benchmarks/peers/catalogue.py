"""All peers by name."""

from collections.abc import Sequence

from benchmarks.peers import infinity, litserve, llamacpp, mosec, naive, sparserm, vllm
from benchmarks.peers.peer import Peer


def all_peers(reward_models: Sequence[str], score_head: Sequence[float]) -> dict[str, Peer]:
    """SparseRM with these reward models, and the other servers with this score head."""
    peers = [
        *sparserm.make_peers(list(reward_models)), *vllm.PEERS, *infinity.PEERS,
        *llamacpp.make_peers(score_head), *naive.PEERS, *litserve.PEERS, *mosec.PEERS,
    ]  # fmt: skip
    return {peer.name: peer for peer in peers}


def select_peers(known: dict[str, Peer], names: Sequence[str]) -> list[Peer]:
    """The named peers, in the order of the catalogue; all peers if `names` is empty."""
    for name in names:
        if name not in known:
            raise ValueError(f"no peer {name!r}; choose from: {', '.join(known)}")
    return [peer for name, peer in known.items() if not names or name in names]
