"""mosec around the padded model: batches limited by size and by waiting time, one item per request."""

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


def build_command(context: LaunchContext) -> Command:
    """One worker using every core; mosec parses the command line, so the checkpoint goes through env."""
    options = ["--address", LOOPBACK, "--port", str(context.port), "--timeout", str(TIMEOUT_MS)]
    env = {"SPARSERM_BENCH_CHECKPOINT": str(context.checkpoint)}
    return Command([str(context.python), "-m", f"{LAUNCH_PACKAGE}.padded_mosec", *options], env)


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /inference with token ids, one request per item: the server batches."""
    return [PeerRequest("/inference", {"ids": list(pair.ids)}) for pair in query]


def read_scores(answer: Any) -> list[float]:
    """The score of the single item."""
    return [float(answer["score"])]


SERVER = PeerServer("mosec", "mosec 0.9.8, padded batches of 8", build_command, "mosec", ready_path="/")
PEERS = [Peer("mosec", SERVER, build_requests, read_scores)]
