"""A reward server as RLHF frameworks ship it: each request is one padded batch and blocks the event loop."""

from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query


def build_command(context: LaunchContext) -> Command:
    """The start command; it runs in this project's own venv."""
    program = [str(context.python), "-m", f"{LAUNCH_PACKAGE}.padded_naive"]
    return Command([*program, str(context.checkpoint), str(context.port)])


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /get_reward with the texts."""
    return [PeerRequest("/get_reward", {"query": [pair.text for pair in query]})]


def read_scores(answer: Any) -> list[float]:
    """One score per text."""
    return list(answer["rewards"])


SERVER = PeerServer("naive", "transformers behind FastAPI, padded, blocking", build_command)
PEERS = [Peer("naive", SERVER, build_requests, read_scores)]
