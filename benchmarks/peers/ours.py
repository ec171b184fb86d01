"""SparseRM as `sparserm serve` serves it: one reward, with its reasons, all models at once, or in 16 bits."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any

from app.backbone.runtime.autotune import MAX_PROBE_SHIFT
from benchmarks.peers.peer import LOOPBACK, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import BenchmarkItem, Query

TOP = 5
COUNTERS = {"saved_tokens": "sparserm_tokens_saved_total"}


def peers(models: list[str]) -> list[Peer]:
    """Ways to ask for one reward model, the first, and for all of them at once."""
    first = models[:1]
    alone = Peer(
        "ours", SERVER, asking(first, explain=False), reading(first[0]), reward_model=first[0], counters=COUNTERS,
        timeout_header="X-SparseRM-Timeout",
    )  # fmt: skip
    half = replace(
        alone, name="ours-16", server=HALF, tolerance=MAX_PROBE_SHIFT,
        only=("unique-1", "unique-16", "groups-8-75", "batch"),
    )  # fmt: skip
    rest = (
        ("ours-reasons", asking(first, explain=True), alone.read_scores, ("unique-1", "unique-16", "batch")),
        ("ours-openrlhf", ask_openrlhf, read_openrlhf, ("unique-16", "storm")),
        (
            "ours-all",
            asking(models, explain=False),
            alone.read_scores,
            ("unique-1", "unique-16", "groups-8-75"),
        ),
    )
    return [
        alone,
        half,
        *(replace(alone, name=n, ask=ask, read=read, only=only) for n, ask, read, only in rest),
    ]


def starting(dtype: str) -> Callable[[LaunchContext], Command]:
    """As its users start it, but for the precision; threads and batches are its own choice."""

    def start(place: LaunchContext) -> Command:
        program = "from app.cli import app; app()"
        args = [str(place.python), "-c", program, "serve", "--host", LOOPBACK, "--port", str(place.port)]
        return Command(args, {"SPARSERM_DTYPE": dtype})

    return start


def asking(models: list[str], *, explain: bool) -> Callable[[Query], list[PeerRequest]]:
    """POST /v1/rewards; responses to the same prompt go together."""
    terms = {"model": models, "explain": "features" if explain else "none", "top_k": TOP if explain else 0}

    def ask(query: Query) -> list[PeerRequest]:
        inputs = [_input(list(same)) for _, same in groupby(query, lambda pair: pair.messages)]
        return [PeerRequest("/v1/rewards", {**terms, "inputs": inputs})]

    return ask


def reading(model: str) -> Callable[[Any], list[float]]:
    """One model's rewards, in the order asked."""
    return lambda answer: [row["reward"] for row in answer["data"] if row["model"] == model]


def ask_openrlhf(query: Query) -> list[PeerRequest]:
    """POST /get_reward as OpenRLHF does: text that went through a chat template."""
    return [PeerRequest("/get_reward", {"query": [pair.text for pair in query]})]


def read_openrlhf(answer: Any) -> list[float]:
    """What OpenRLHF reads."""
    return list(answer["rewards"])


def _input(pairs: list[BenchmarkItem]) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in pairs[0].messages]
    return {"messages": turns, "responses": [pair.response for pair in pairs]}


SERVER = PeerServer("ours", "sparserm serve, float32", starting("float32"), ready_path="/ready")
HALF = PeerServer("ours-16", "sparserm serve, bfloat16", starting("bfloat16"), ready_path="/ready")
