"""Times the backbone alone on a GPU: random weights, packed and padded batches, and the GEMM peak.

`python -m benchmarks.gpu` needs no download and no bundle; `--tiny` runs the same code on a CPU.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from app.backbone.attention import RowIndices, SegmentedMask
from app.backbone.backbone import Backbone
from app.backbone.packing import PackedBatch, TokenIds, pack
from app.backbone.runtime.cuda_graphs import CudaGraphRunner

ROUNDS = 5
PADDED_BATCH_SIZE = 16
FULL_SIZE_MODELS: dict[str, dict[str, Any]] = {
    "gemma-2-2b, 13 layers": {
        "model_type": "gemma2", "num_hidden_layers": 13, "hidden_size": 2304, "intermediate_size": 9216,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    },
    "gemma-2-9b, 21 layers": {
        "model_type": "gemma2", "num_hidden_layers": 21, "hidden_size": 3584, "intermediate_size": 14336,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    },
    "llama-3.1-8b, 16 layers": {
        "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
TINY_MODELS: dict[str, dict[str, Any]] = {
    "gemma-2, tiny": {
        "model_type": "gemma2", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip
VOCABULARY = 32_000


def main() -> None:
    """Measure every model on every workload; print one line each, and write JSON if --out is set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions on the CPU")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[128, 512, 8192, 32768], help="tokens per forward pass"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu.json")
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    print(f"{torch.__version__}, {_device_name(device)}, {dtype}, load average {os.getloadavg()[0]:.2f}")
    rows = []
    for name, shape in (TINY_MODELS if args.tiny else FULL_SIZE_MODELS).items():
        for row in measure_model(name, shape, args.tokens, device, dtype):
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if args.out:
        (args.out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")


def measure_model(
    name: str, shape: dict[str, Any], sizes: list[int], device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """One row per workload and batch size."""
    dimensions = {key: value for key, value in shape.items() if key != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], vocab_size=VOCABULARY, **dimensions)
    torch.manual_seed(0)
    with torch.device(device):
        decoder = AutoModel.from_config(config, dtype=dtype).eval()
    batches = {(load, size): _make_items(load, size) for load in ("mixed", "groups") for size in sizes}
    padded_s = {
        key: median_seconds(partial(_run_padded, decoder, items), device) for key, items in batches.items()
    }
    backbone = Backbone(
        decoder, name=name, digest="", num_parameters=0, total_layers=config.num_hidden_layers
    )
    backbone.cuda_graphs = CudaGraphRunner(backbone.layers, backbone.embed)
    peak = gemm_peak(device, dtype)
    rows = []
    for (load, size), items in batches.items():
        packed = pack(items)
        reads = {backbone.num_layers: _last_rows(packed, items)}
        seconds = median_seconds(partial(backbone.residuals, packed, reads), device)
        with without_cuda_graphs(backbone):
            launched_s = median_seconds(partial(backbone.residuals, packed, reads), device)
        useful = sum(map(len, items))
        rows.append({
            "model": name, "load": load, "pass": size, "useful tokens/s": round(useful / seconds),
            "computed": f"{len(packed.ids) / useful:.0%}",
            "of peak": f"{count_flops(config, packed) / seconds / peak:.1%}",
            "over padded": round(padded_s[load, size] / seconds, 2),
            "over launched": round(launched_s / seconds, 2),
            "off": f"{max_relative_difference(backbone, packed, reads):.1e}",
        })  # fmt: skip
    rows.append({"model": name, "GEMM peak, TFLOP/s": round(peak / 1e12, 1)})
    return rows


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds, after two runs that compile and warm up."""
    times = []
    for number in range(ROUNDS + 2):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product, the better of two medians."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(median_seconds(partial(torch.mm, a, b), device) for _ in range(2))


def count_flops(config: PreTrainedConfig, packed: PackedBatch) -> float:
    """The FLOPs of the computed tokens: matrix products, and attention to all earlier tokens."""
    width, size = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    products = 2 * width * size * (2 * heads + 2 * kv_heads) + 6 * width * config.intermediate_size
    attended = float((packed.positions + 1).sum())
    return float(config.num_hidden_layers * (products * len(packed.ids) + 4 * heads * size * attended))


@contextmanager
def without_cuda_graphs(backbone: Backbone) -> Iterator[None]:
    """Launch every kernel, without CUDA graphs, inside the block."""
    cuda_graphs, backbone.cuda_graphs = backbone.cuda_graphs, None
    try:
        yield
    finally:
        backbone.cuda_graphs = cuda_graphs


@torch.inference_mode()
def max_relative_difference(backbone: Backbone, packed: PackedBatch, reads: dict[int, RowIndices]) -> float:
    """How far steps, or blocks, are from pieces, relative to the residuals' size."""
    residuals = backbone.residuals(packed, reads)[backbone.num_layers].values
    original, backbone.mask_type = backbone.mask_type, SegmentedMask
    with without_cuda_graphs(backbone):
        reference = backbone.residuals(packed, reads)[backbone.num_layers].values
    backbone.mask_type = original
    return float((residuals - reference).norm() / reference.norm())


def _make_items(load: str, tokens: int) -> list[TokenIds]:
    """Items of 64 to 512 tokens, or groups of 8 that share 192 of 256 tokens, until `tokens` is reached."""
    rng, items = random.Random(f"{load}{tokens}"), list[TokenIds]()
    while sum(map(len, items)) < tokens:
        shared = tuple(rng.choices(range(VOCABULARY), k=192)) if load == "groups" else ()
        for _ in range(8 if load == "groups" else 1):
            own = 64 if load == "groups" else rng.randint(64, 512)
            items.append(shared + tuple(rng.choices(range(VOCABULARY), k=own)))
    return items


@torch.inference_mode()
def _run_padded(decoder: Any, items: list[TokenIds]) -> None:
    """Run as servers without packing do: fixed-size batches, padded to the longest item."""
    for start in range(0, len(items), PADDED_BATCH_SIZE):
        batch = items[start : start + PADDED_BATCH_SIZE]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(batch):
            ids[row, : len(item)], mask[row, : len(item)] = torch.tensor(item), 1
        decoder(input_ids=ids.to(decoder.device), attention_mask=mask.to(decoder.device), use_cache=False)


def _last_rows(packed: PackedBatch, items: list[TokenIds]) -> RowIndices:
    return np.concatenate([packed.rows(i, len(ids) - 1, len(ids)) for i, ids in enumerate(items)])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
