"""llama.cpp's server as usually run: all layers, 4-bit weights, the embedding of the last token.

It has no score head for this architecture, so the client applies the head to the embedding. Activations are
quantised too, so scores are close to the reference, not equal to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.peer import LAUNCH_PACKAGE, Command, Depth, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query

# About one standard deviation of the scores: 4-bit weights and quantised activations.
TOLERANCE = 0.2


def make_peers(score_head: Sequence[float]) -> list[Peer]:
    """The peer; its scores are embeddings multiplied by this head."""
    return [Peer("llamacpp", SERVER, build_requests, make_score_reader(score_head), tolerance=TOLERANCE)]


def build_command(context: LaunchContext) -> Command:
    """The start command: the GGUF file of the backbone's own wheel, on every core."""
    return Command(
        [str(context.python), "-m", f"{LAUNCH_PACKAGE}.llamacpp", str(context.port), str(context.cores)]
    )


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /v1/embeddings with the token ids of all items."""
    return [PeerRequest("/v1/embeddings", {"model": "reward", "input": [list(pair.ids) for pair in query]})]


def make_score_reader(score_head: Sequence[float]) -> Callable[[Any], list[float]]:
    """A function that multiplies the embeddings by the head, in the order of the request."""

    def read_scores(answer: Any) -> list[float]:
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [sum(a * b for a, b in zip(score_head, row["embedding"], strict=True)) for row in rows]

    return read_scores


SERVER = PeerServer(
    "llamacpp",
    "llama.cpp (xllamacpp 2026.10.11549), Q4_1, all layers",
    build_command,
    "llamacpp",
    depth=Depth.FULL,
)
