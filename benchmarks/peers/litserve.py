"""LitServe around the padded model: batches of a most size or a most wait, one item a request."""

from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query


def start(place: LaunchContext) -> Command:
    """One worker on every core."""
    program = [str(place.python), "-m", f"{LAUNCH_PACKAGE}.padded_litserve"]
    return Command([*program, str(place.checkpoint), str(place.port)])


def ask(query: Query) -> list[PeerRequest]:
    """POST /predict with token ids, a request each: batching is the server's."""
    return [PeerRequest("/predict", {"ids": list(pair.ids)}) for pair in query]


def read(answer: Any) -> list[float]:
    """One number."""
    return [float(answer["score"])]


PEERS = [
    Peer(
        "litserve",
        PeerServer("litserve", "LitServe 0.2.19, padded batches of 8", start, "litserve"),
        ask,
        read,
    )
]
