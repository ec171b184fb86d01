"""vLLM's CPU build as a pooling server: token-budget batches, prefix cache, tuned for this machine.

Two defaults that would cost it speed here are changed: it reserves one core for HTTP and computes on the
others, and it shares prompts in blocks of 128 tokens.
"""

from dataclasses import replace
from typing import Any

from app.backbone.runtime.autotune import MAX_PROBE_SHIFT
from benchmarks.peers.peer import (
    LAUNCH_PACKAGE,
    LOOPBACK,
    Command,
    Depth,
    LaunchContext,
    Peer,
    PeerRequest,
    PeerServer,
)
from benchmarks.workloads import Query

MAX_ITEM_TOKENS = 2048
MAX_BATCH_TOKENS = 4096
# Tokens per KV-cache block; small, so that shared prompts are found.
BLOCK_SIZE = 32
COUNTERS = {"cached_tokens": "vllm:prefix_cache_hits_total"}


def build_command(
    context: LaunchContext,
    *flags: str,
    block_size: int = BLOCK_SIZE,
    zen: bool = False,
    dtype: str = "float32",
) -> Command:
    """The start command: every core computes."""
    options = {
        "--host": LOOPBACK, "--port": str(context.port), "--served-model-name": "reward",
        "--runner": "pooling", "--dtype": dtype,
        "--max-model-len": str(MAX_ITEM_TOKENS), "--block-size": str(block_size),
        "--max-num-batched-tokens": str(MAX_BATCH_TOKENS), "--renderer-num-workers": str(context.cores),
    }  # fmt: skip
    arguments = [word for option in options.items() for word in option]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{context.cores - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "SPARSERM_BENCH_ZEN": str(int(zen)),
    }
    program = [str(context.python), "-m", f"{LAUNCH_PACKAGE}.vllm"]
    return Command([*program, "serve", str(context.checkpoint), *arguments, *flags], env)


def build_requests(query: Query) -> list[PeerRequest]:
    """POST /classify with the token ids of all items."""
    ids = [list(pair.ids) for pair in query]
    return [PeerRequest("/classify", {"model": "reward", "input": ids, "use_activation": False})]


def read_scores(answer: Any) -> list[float]:
    """The raw logit of the first label."""
    return [float(row["probs"][0]) for row in answer["data"]]


COMPILED = PeerServer("vllm", "vllm-cpu 0.32.0, compiled", build_command, "vllm", expected_start_s=120)
UNIQUE = ("unique-1", "unique-16", "unique-64", "mixed")
VARIANTS = (
    (COMPILED, ()),
    (
        replace(
            COMPILED, name="vllm-16", description="the same in bfloat16",
            build_command=lambda context: build_command(context, dtype="bfloat16"),
        ),
        ("unique-1", "unique-16"),
    ),
    (replace(COMPILED, name="vllm-full", description="the same, all layers", depth=Depth.FULL), UNIQUE),
    (
        replace(
            COMPILED, name="vllm-eager", description="the same, not compiled", expected_start_s=70,
            build_command=lambda context: build_command(context, "--enforce-eager"),
        ),
        (*UNIQUE, "groups-8-75"),
    ),
    (
        replace(
            COMPILED, name="vllm-zen", description="the same with zentorch, for AMD processors with AVX-512",
            build_command=lambda context: build_command(context, zen=True),
        ),
        (*UNIQUE, "groups-8-75"),
    ),
    (
        replace(
            COMPILED, name="vllm-block-128", description="the same, its default block size",
            build_command=lambda context: build_command(context, block_size=128),
        ),
        ("unique-16", "groups-8-75", "groups-8-75-apart"),
    ),
    (
        replace(COMPILED, name="vllm-four", description="four of the same, each sent every item", copies=4),
        ("unique-16",),
    ),
)  # fmt: skip
OVERRIDES: dict[str, dict[str, Any]] = {
    "vllm-16": {"compared_with": "ours-16", "tolerance": MAX_PROBE_SHIFT},
    "vllm-four": {"compared_with": "ours-all"},
}
PEERS = [
    Peer(
        server.name,
        server,
        build_requests,
        read_scores,
        counters=COUNTERS,
        only_workloads=only,
        **OVERRIDES.get(server.name, {}),
    )
    for server, only in VARIANTS
]
