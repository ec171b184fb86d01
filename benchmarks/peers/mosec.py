"""mosec around the padded model: batches of a most size or a most wait, one item a request."""

from typing import Any

from benchmarks.peers.peer import (
    LAUNCH_PACKAGE,
    LOOPBACK,
    Command,
    LaunchContext,
    Peer,
    PeerRequest,
    PeerServer,
)
from benchmarks.workloads import Query

TIMEOUT_MS = 600_000


def start(place: LaunchContext) -> Command:
    """One worker on every core; it reads its own options, so the checkpoint comes in the environment."""
    options = ["--address", LOOPBACK, "--port", str(place.port), "--timeout", str(TIMEOUT_MS)]
    env = {"SPARSERM_BENCH_CHECKPOINT": str(place.checkpoint)}
    return Command([str(place.python), "-m", f"{LAUNCH_PACKAGE}.padded_mosec", *options], env)


def ask(query: Query) -> list[PeerRequest]:
    """POST /inference with token ids, a request each: batching is the server's."""
    return [PeerRequest("/inference", {"ids": list(pair.ids)}) for pair in query]


def read(answer: Any) -> list[float]:
    """One number."""
    return [float(answer["score"])]


SERVER = PeerServer("mosec", "mosec 0.9.8, padded batches of 8", start, "mosec", ready_path="/")
PEERS = [Peer("mosec", SERVER, ask, read)]
