"""infinity: texts sorted by length, in padded batches, through a transformers pipeline."""

from dataclasses import replace
from typing import Any

from benchmarks.peers.peer import LOOPBACK, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import Query

BATCH = 32


def build_command(context: LaunchContext, *switches: str) -> Command:
    """The start command: torch in float32; the warm-up workload replaces its own warm-up."""
    program = str(context.python.with_name("infinity_emb"))
    options = {
        "--model-id": str(context.checkpoint), "--served-model-name": "reward", "--host": LOOPBACK,
        "--port": str(context.port), "--engine": "torch", "--device": "cpu", "--dtype": "float32",
        "--batch-size": str(BATCH),
    }  # fmt: skip
    arguments = [word for option in options.items() for word in option]
    env = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    flags = ["--no-bettertransformer", "--no-trust-remote-code", "--no-model-warmup"]
    return Command([program, "v2", *arguments, *flags, *switches], env)


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /classify with the texts; it does not accept token ids."""
    texts = [pair.text for pair in query]
    return [PeerRequest("/classify", {"model": "reward", "input": texts, "raw_scores": True})]


def read_scores(answer: Any) -> list[float]:
    """The raw logit of the label `score`."""
    return [label["score"] for row in answer["data"] for label in row if label["label"] == "score"]


COMPILED = PeerServer(
    "infinity",
    "infinity-emb 0.0.78, torch, compiled as by default",
    build_command,
    "infinity",
    expected_start_s=30,
)
EAGER = replace(
    COMPILED, name="infinity-eager", description="the same, not compiled",
    build_command=lambda context: build_command(context, "--no-compile"),
)  # fmt: skip
PEERS = [
    Peer("infinity", COMPILED, build_requests, read_scores),
    Peer(
        "infinity-eager",
        EAGER,
        build_requests,
        read_scores,
        only_workloads=("unique-1", "unique-16", "unique-64", "mixed"),
    ),
]
