"""A reward server as RLHF frameworks ship them: a request is one padded batch, and blocks the event loop."""

from typing import Any

from benchmarks.peers.peer import LAUNCH, Command, Peer, Place, Request, Server
from benchmarks.workloads import Query


def start(place: Place) -> Command:
    """In this project's own venv."""
    program = [str(place.python), "-m", f"{LAUNCH}.padded_naive"]
    return Command([*program, str(place.checkpoint), str(place.port)])


def ask(query: Query) -> list[Request]:
    """POST /get_reward with text."""
    return [Request("/get_reward", {"query": [pair.text for pair in query]})]


def read(answer: Any) -> list[float]:
    """A number a text."""
    return list(answer["rewards"])


SERVER = Server("naive", "transformers behind FastAPI, padded, blocking", start)
PEERS = [Peer("naive", SERVER, ask, read)]
