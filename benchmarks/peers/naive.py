"""A reward server as RLHF frameworks ship them: a request is one padded batch, and blocks the event loop."""

from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query


def start(place: LaunchContext) -> Command:
    """In this project's own venv."""
    program = [str(place.python), "-m", f"{LAUNCH_PACKAGE}.padded_naive"]
    return Command([*program, str(place.checkpoint), str(place.port)])


def ask(query: Query) -> list[PeerRequest]:
    """POST /get_reward with text."""
    return [PeerRequest("/get_reward", {"query": [pair.text for pair in query]})]


def read(answer: Any) -> list[float]:
    """A number a text."""
    return list(answer["rewards"])


SERVER = PeerServer("naive", "transformers behind FastAPI, padded, blocking", start)
PEERS = [Peer("naive", SERVER, ask, read)]
