"""infinity: batches of so many texts sorted by length, padded, through a transformers pipeline."""

from dataclasses import replace
from typing import Any

from benchmarks.peers.peer import LOOPBACK, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query

BATCH = 32


def start(place: LaunchContext, *switches: str) -> Command:
    """Its torch engine in float32; warmed up by what is asked before measuring."""
    program = str(place.python.with_name("infinity_emb"))
    options = {
        "--model-id": str(place.checkpoint), "--served-model-name": "reward", "--host": LOOPBACK,
        "--port": str(place.port), "--engine": "torch", "--device": "cpu", "--dtype": "float32",
        "--batch-size": str(BATCH),
    }  # fmt: skip
    said = [word for option in options.items() for word in option]
    env = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    plain = ["--no-bettertransformer", "--no-trust-remote-code", "--no-model-warmup"]
    return Command([program, "v2", *said, *plain, *switches], env)


def ask(query: Query) -> list[PeerRequest]:
    """POST /classify with text; it takes no token ids."""
    texts = [pair.text for pair in query]
    return [PeerRequest("/classify", {"model": "reward", "input": texts, "raw_scores": True})]


def read(answer: Any) -> list[float]:
    """The first label's raw logit."""
    return [label["score"] for row in answer["data"] for label in row if label["label"] == "score"]


COMPILED = PeerServer(
    "infinity", "infinity-emb 0.0.78, torch, compiled as by default", start, "infinity", expected_start_s=30
)
EAGER = replace(
    COMPILED, name="infinity-eager", about="the same, not compiled",
    start=lambda place: start(place, "--no-compile"),
)  # fmt: skip
PEERS = [
    Peer("infinity", COMPILED, ask, read),
    Peer("infinity-eager", EAGER, ask, read, only_workloads=("unique-1", "unique-16", "unique-64", "mixed")),
]
