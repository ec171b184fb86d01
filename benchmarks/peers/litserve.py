"""LitServe around the padded model: batches limited by size and by waiting time, one item per request."""

from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query


def build_command(context: LaunchContext) -> Command:
    """The start command: one worker that uses every core."""
    program = [str(context.python), "-m", f"{LAUNCH_PACKAGE}.padded_litserve"]
    return Command([*program, str(context.checkpoint), str(context.port)])


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /predict with token ids, one request per item: the server batches."""
    return [PeerRequest("/predict", {"ids": list(pair.ids)}) for pair in query]


def read_scores(answer: Any) -> list[float]:
    """The score of the single item."""
    return [float(answer["score"])]


SERVER = PeerServer("litserve", "LitServe 0.2.19, padded batches of 8", build_command, "litserve")
PEERS = [Peer("litserve", SERVER, build_requests, read_scores)]
