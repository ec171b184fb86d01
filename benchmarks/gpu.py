"""The backbone alone on a GPU: random weights at true size, packed against padded, beside the GEMM peak.

`python -m benchmarks.gpu` needs no download and no bundle; `--tiny` walks the same way on a CPU.
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

ROUNDS, BATCH = 5, 16
TRUE: dict[str, dict[str, Any]] = {
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
TINY: dict[str, dict[str, Any]] = {
    "gemma-2, tiny": {
        "model_type": "gemma2", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip
VOCABULARY = 32_000


def main() -> None:
    """Measure every shape on every workload; print a line each, and write JSON where asked."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--tiny", action="store_true", help="toy dimensions on the CPU")
    asked.add_argument(
        "--tokens", type=int, nargs="+", default=[128, 512, 8192, 32768], help="tokens in a pass"
    )
    asked.add_argument("--out", type=Path, help="a folder for gpu.json")
    chosen = asked.parse_args()
    device = torch.device("cpu" if chosen.tiny else "cuda")
    dtype = torch.float32 if chosen.tiny else torch.bfloat16
    print(f"{torch.__version__}, {_name(device)}, {dtype}, load average {os.getloadavg()[0]:.2f}")
    found = []
    for name, shape in (TINY if chosen.tiny else TRUE).items():
        for row in measured(name, shape, chosen.tokens, device, dtype):
            found.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.out:
        (chosen.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


def measured(
    name: str, shape: dict[str, Any], sizes: list[int], device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """One line a workload and pass size."""
    kind = {key: value for key, value in shape.items() if key != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], vocab_size=VOCABULARY, **kind)
    torch.manual_seed(0)
    with torch.device(device):
        decoder = AutoModel.from_config(config, dtype=dtype).eval()
    items = {(load, size): _items(load, size) for load in ("mixed", "groups") for size in sizes}
    padded = {key: timed(partial(_padded, decoder, rows), device) for key, rows in items.items()}
    backbone = Backbone(
        decoder, name=name, digest="", num_parameters=0, total_layers=config.num_hidden_layers
    )
    backbone.cuda_graphs = CudaGraphRunner(backbone.layers, backbone.embed)
    peak = gemm_peak(device, dtype)
    rows = []
    for (load, size), some in items.items():
        packed = pack(some)
        reads = {backbone.num_layers: _ends(packed, some)}
        seconds = timed(partial(backbone.residuals, packed, reads), device)
        with launching(backbone):
            launched = timed(partial(backbone.residuals, packed, reads), device)
        useful = sum(map(len, some))
        rows.append({
            "model": name, "load": load, "pass": size, "useful tokens/s": round(useful / seconds),
            "computed": f"{len(packed.ids) / useful:.0%}",
            "of peak": f"{flops(config, packed) / seconds / peak:.1%}",
            "over padded": round(padded[load, size] / seconds, 2),
            "over launched": round(launched / seconds, 2),
            "off": f"{apart(backbone, packed, reads):.1e}",
        })  # fmt: skip
    rows.append({"model": name, "GEMM peak, TFLOP/s": round(peak / 1e12, 1)})
    return rows


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds, after two runs that compile and warm."""
    found = []
    for number in range(ROUNDS + 2):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if number >= 2:
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large product, the better of two medians."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(partial(torch.mm, a, b), device) for _ in range(2))


def flops(config: PreTrainedConfig, packed: PackedBatch) -> float:
    """What the computed tokens cost: the products of every layer, and attention over what each token sees."""
    width, size = config.hidden_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    products = 2 * width * size * (2 * heads + 2 * groups) + 6 * width * config.intermediate_size
    seen = float((packed.positions + 1).sum())
    return float(config.num_hidden_layers * (products * len(packed.ids) + 4 * heads * size * seen))


@contextmanager
def launching(backbone: Backbone) -> Iterator[None]:
    """Every kernel launched, none recorded."""
    steps, backbone.cuda_graphs = backbone.cuda_graphs, None
    try:
        yield
    finally:
        backbone.cuda_graphs = steps


@torch.inference_mode()
def apart(backbone: Backbone, packed: PackedBatch, reads: dict[int, RowIndices]) -> float:
    """How far steps, or blocks, are from pieces, relative to the residuals' size."""
    ours = backbone.residuals(packed, reads)[backbone.num_layers].values
    usual, backbone.mask_type = backbone.mask_type, SegmentedMask
    with launching(backbone):
        other = backbone.residuals(packed, reads)[backbone.num_layers].values
    backbone.mask_type = usual
    return float((ours - other).norm() / other.norm())


def _items(load: str, tokens: int) -> list[TokenIds]:
    """Lengths of 64 to 512, or groups of 8 that share 192 of 256 tokens, until there are enough."""
    rng, items = random.Random(f"{load}{tokens}"), list[TokenIds]()
    while sum(map(len, items)) < tokens:
        shared = tuple(rng.choices(range(VOCABULARY), k=192)) if load == "groups" else ()
        for _ in range(8 if load == "groups" else 1):
            own = 64 if load == "groups" else rng.randint(64, 512)
            items.append(shared + tuple(rng.choices(range(VOCABULARY), k=own)))
    return items


@torch.inference_mode()
def _padded(decoder: Any, items: list[TokenIds]) -> None:
    """As servers without packing do it: so many at a time, padded to the longest."""
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(some):
            ids[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), 1
        decoder(input_ids=ids.to(decoder.device), attention_mask=mask.to(decoder.device), use_cache=False)


def _ends(packed: PackedBatch, items: list[TokenIds]) -> RowIndices:
    return np.concatenate([packed.rows(i, len(ids) - 1, len(ids)) for i, ids in enumerate(items)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
