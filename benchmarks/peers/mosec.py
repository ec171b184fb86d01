"""mosec around the padded model: batches of a most size or a most wait, one item a request."""

from typing import Any

from benchmarks.peers.peer import HERE, LAUNCH, Command, Peer, Place, Request, Server
from benchmarks.workloads import Query

TIMEOUT_MS = 600_000


def start(place: Place) -> Command:
    """One worker on every core; it reads its own options, so the checkpoint comes in the environment."""
    options = ["--address", HERE, "--port", str(place.port), "--timeout", str(TIMEOUT_MS)]
    env = {"SPARSERM_BENCH_CHECKPOINT": str(place.checkpoint)}
    return Command([str(place.python), "-m", f"{LAUNCH}.padded_mosec", *options], env)


def ask(query: Query) -> list[Request]:
    """POST /inference with token ids, a request each: batching is the server's."""
    return [Request("/inference", {"ids": list(pair.ids)}) for pair in query]


def read(answer: Any) -> list[float]:
    """One number."""
    return [float(answer["score"])]


SERVER = Server("mosec", "mosec 0.9.8, padded batches of 8", start, "mosec", ready="/")
PEERS = [Peer("mosec", SERVER, ask, read)]
