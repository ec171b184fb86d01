"""SparseRM as `sparserm serve` serves it: one reward, explanations, all models at once, or bfloat16."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any

from app.backbone.runtime.autotune import MAX_PROBE_SHIFT
from benchmarks.peers.peer import LOOPBACK, Command, LaunchContext, Peer, PeerRequest, PeerServer
from benchmarks.workloads import BenchmarkItem, Query

TOP_K = 5
COUNTERS = {"saved_tokens": "sparserm_tokens_saved_total"}


def make_peers(models: list[str]) -> list[Peer]:
    """The ways to request scores from SparseRM: of the first reward model, or of all models at once."""
    first = models[:1]
    one_model = Peer(
        "ours", SERVER, make_request_builder(first, explain=False), make_score_reader(first[0]),
        reward_model=first[0], counters=COUNTERS, timeout_header="X-SparseRM-Timeout",
    )  # fmt: skip
    bfloat16 = replace(
        one_model, name="ours-16", server=BFLOAT16_SERVER, tolerance=MAX_PROBE_SHIFT,
        only_workloads=("unique-1", "unique-16", "groups-8-75", "batch"),
    )  # fmt: skip
    explained = replace(
        one_model, name="ours-reasons", build_requests=make_request_builder(first, explain=True),
        only_workloads=("unique-1", "unique-16", "batch"),
    )  # fmt: skip
    openrlhf = replace(
        one_model, name="ours-openrlhf", build_requests=build_openrlhf_requests,
        read_scores=read_openrlhf_scores, only_workloads=("unique-16", "storm"),
    )  # fmt: skip
    all_models = replace(
        one_model, name="ours-all", build_requests=make_request_builder(models, explain=False),
        only_workloads=("unique-1", "unique-16", "groups-8-75"),
    )  # fmt: skip
    return [one_model, bfloat16, explained, openrlhf, all_models]


def make_command_builder(dtype: str) -> Callable[[LaunchContext], Command]:
    """A function that returns the start command; only the dtype is set, threads and batches are automatic."""

    def build_command(context: LaunchContext) -> Command:
        program = "from app.cli import app; app()"
        args = [str(context.python), "-c", program, "serve", "--host", LOOPBACK, "--port", str(context.port)]
        return Command(args, {"SPARSERM_DTYPE": dtype})

    return build_command


def make_request_builder(models: list[str], *, explain: bool) -> Callable[[Query], list[PeerRequest]]:
    """A function that builds POST /v1/rewards; responses to the same prompt share one input."""
    options = {
        "model": models,
        "explain": "features" if explain else "none",
        "top_k": TOP_K if explain else 0,
    }

    def build_requests(query: Query) -> list[PeerRequest]:
        inputs = [_input(list(items)) for _, items in groupby(query, lambda item: item.messages)]
        return [PeerRequest("/v1/rewards", {**options, "inputs": inputs})]

    return build_requests


def make_score_reader(model: str) -> Callable[[Any], list[float]]:
    """A function that reads one model's rewards, in the order of the request."""
    return lambda answer: [row["reward"] for row in answer["data"] if row["model"] == model]


def build_openrlhf_requests(query: Query) -> list[PeerRequest]:
    """POST /get_reward as OpenRLHF sends it: text after the chat template."""
    return [PeerRequest("/get_reward", {"query": [item.text for item in query]})]


def read_openrlhf_scores(answer: Any) -> list[float]:
    """The rewards that OpenRLHF reads."""
    return list(answer["rewards"])


def _input(items: list[BenchmarkItem]) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in items[0].messages]
    return {"messages": messages, "responses": [item.response for item in items]}


SERVER = PeerServer("ours", "sparserm serve, float32", make_command_builder("float32"), ready_path="/ready")
BFLOAT16_SERVER = PeerServer(
    "ours-16", "sparserm serve, bfloat16", make_command_builder("bfloat16"), ready_path="/ready"
)
