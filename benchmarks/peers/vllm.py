"""vLLM's CPU build as a pooling server: token-budget batches, prefix cache, tuned for this machine.

By default it keeps one core for its HTTP side and computes on the others, and looks for shared prompts in
blocks of 128 tokens; both would cost it speed here.
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

MOST_TOKENS, BATCH_TOKENS, BLOCK = 2048, 4096, 32
COUNTERS = {"cached_tokens": "vllm:prefix_cache_hits_total"}


def start(
    place: LaunchContext, *flags: str, block: int = BLOCK, zen: bool = False, dtype: str = "float32"
) -> Command:
    """Every core computes, small blocks so that shared prompts are found."""
    options = {
        "--host": LOOPBACK, "--port": str(place.port), "--served-model-name": "reward", "--runner": "pooling",
        "--dtype": dtype, "--max-model-len": str(MOST_TOKENS), "--block-size": str(block),
        "--max-num-batched-tokens": str(BATCH_TOKENS), "--renderer-num-workers": str(place.cores),
    }  # fmt: skip
    said = [word for option in options.items() for word in option]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.cores - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "SPARSERM_BENCH_ZEN": str(int(zen)),
    }
    program = [str(place.python), "-m", f"{LAUNCH_PACKAGE}.vllm"]
    return Command([*program, "serve", str(place.checkpoint), *said, *flags], env)


def ask(query: Query) -> list[PeerRequest]:
    """POST /classify with token ids."""
    ids = [list(pair.ids) for pair in query]
    return [PeerRequest("/classify", {"model": "reward", "input": ids, "use_activation": False})]


def read(answer: Any) -> list[float]:
    """The first label's raw logit."""
    return [float(one["probs"][0]) for one in answer["data"]]


COMPILED = PeerServer("vllm", "vllm-cpu 0.32.0, compiled", start, "vllm", expected_start_s=120)
UNIQUE = ("unique-1", "unique-16", "unique-64", "mixed")
VARIANTS = (
    (COMPILED, ()),
    (
        replace(
            COMPILED, name="vllm-16", about="the same in bfloat16",
            start=lambda place: start(place, dtype="bfloat16"),
        ),
        ("unique-1", "unique-16"),
    ),
    (replace(COMPILED, name="vllm-full", about="the same, all layers", depth=Depth.FULL), UNIQUE),
    (
        replace(
            COMPILED, name="vllm-eager", about="the same, not compiled", start_s=70,
            start=lambda place: start(place, "--enforce-eager"),
        ),
        (*UNIQUE, "groups-8-75"),
    ),
    (
        replace(
            COMPILED, name="vllm-zen", about="the same with zentorch, for AMD processors with AVX-512",
            start=lambda place: start(place, zen=True),
        ),
        (*UNIQUE, "groups-8-75"),
    ),
    (
        replace(
            COMPILED, name="vllm-block-128", about="the same, its default block size",
            start=lambda place: start(place, block=128),
        ),
        ("unique-16", "groups-8-75", "groups-8-75-apart"),
    ),
    (
        replace(COMPILED, name="vllm-four", about="four of the same, each asked for every pair", copies=4),
        ("unique-16",),
    ),
)  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {
    "vllm-16": {"against": "ours-16", "tolerance": MAX_PROBE_SHIFT},
    "vllm-four": {"against": "ours-all"},
}
PEERS = [
    Peer(
        server.name,
        server,
        ask,
        read,
        counters=COUNTERS,
        only_workloads=only,
        **OTHERWISE.get(server.name, {}),
    )
    for server, only in VARIANTS
]
