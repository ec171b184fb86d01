"""infinity: batches of so many texts sorted by length, padded, through a transformers pipeline."""

from typing import Any

from benchmarks.peers.peer import HERE, Command, Peer, Place, Request, Server
from benchmarks.workloads import Query

BATCH = 32


def start(place: Place) -> Command:
    """Its torch engine in float32, compiled as by default; warmed up by what is asked before measuring."""
    program = str(place.python.with_name("infinity_emb"))
    options = {
        "--model-id": str(place.checkpoint), "--served-model-name": "reward", "--host": HERE,
        "--port": str(place.port), "--engine": "torch", "--device": "cpu", "--dtype": "float32",
        "--batch-size": str(BATCH),
    }  # fmt: skip
    said = [word for option in options.items() for word in option]
    env = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    switches = ["--no-bettertransformer", "--no-trust-remote-code", "--no-model-warmup"]
    return Command([program, "v2", *said, *switches], env)


def ask(query: Query) -> list[Request]:
    """POST /classify with text; it takes no token ids."""
    texts = [pair.text for pair in query]
    return [Request("/classify", {"model": "reward", "input": texts, "raw_scores": True})]


def read(answer: Any) -> list[float]:
    """The first label's raw logit."""
    return [label["score"] for row in answer["data"] for label in row if label["label"] == "score"]


SERVER = Server("infinity", "infinity-emb 0.0.78, torch", start, "infinity")
PEERS = [Peer("infinity", SERVER, ask, read)]
