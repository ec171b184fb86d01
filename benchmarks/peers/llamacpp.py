"""llama.cpp's server in its natural form: the whole model, four bits a weight, the last token's embedding.

It has no score head for this architecture, so the client multiplies. Activations are quantised too: scores
are near the reference, not equal to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, Depth, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query

TOLERANCE = 0.2  # about a standard deviation of the scores


def peers(head: Sequence[float]) -> list[Peer]:
    """The peer, reading scores by this head."""
    return [Peer("llamacpp", SERVER, ask, reading(head), tolerance=TOLERANCE)]


def start(place: LaunchContext) -> Command:
    """Its own GGUF, from the wheel the backbone comes from; every core computes."""
    return Command([str(place.python), "-m", f"{LAUNCH_PACKAGE}.llamacpp", str(place.port), str(place.cores)])


def ask(query: Query) -> list[PeerRequest]:
    """POST /v1/embeddings with token ids."""
    return [PeerRequest("/v1/embeddings", {"model": "reward", "input": [list(pair.ids) for pair in query]})]


def reading(head: Sequence[float]) -> Callable[[Any], list[float]]:
    """Embeddings by the head, in the order asked."""

    def read(answer: Any) -> list[float]:
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [sum(a * b for a, b in zip(head, row["embedding"], strict=True)) for row in rows]

    return read


SERVER = PeerServer(
    "llamacpp", "llama.cpp (xllamacpp 2026.10.11549), Q4_1, all layers", start, "llamacpp", depth=Depth.FULL
)
