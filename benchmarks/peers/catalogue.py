"""Every peer by name."""

from collections.abc import Sequence

from benchmarks.peers import infinity, litserve, llamacpp, mosec, naive, ours, vllm
from benchmarks.peers.peer import Peer


def all_peers(models: Sequence[str], head: Sequence[float]) -> dict[str, Peer]:
    """All of them: ours for these reward models, the others with this score head."""
    found = [
        *ours.peers(list(models)), *vllm.PEERS, *infinity.PEERS, *llamacpp.peers(head), *naive.PEERS,
        *litserve.PEERS, *mosec.PEERS,
    ]  # fmt: skip
    return {peer.name: peer for peer in found}


def select_peers(known: dict[str, Peer], names: Sequence[str]) -> list[Peer]:
    """Peers by name, in the order of the catalogue; all of them for no names."""
    for name in names:
        if name not in known:
            raise ValueError(f"no peer {name!r}; there are: {', '.join(known)}")
    return [peer for name, peer in known.items() if not names or name in names]
