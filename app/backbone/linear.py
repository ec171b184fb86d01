"""Products with matrices that never change.

On a CPU oneDNN lays a matrix out once in the blocks that its kernels read. At the shapes of small models a
product is up to half as fast again as one that has to find them every time. oneDNN keeps kernels of half a
MiB for every number of rows it has met, so rows come in few numbers (benchmarks/LOG.md).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

PACK_OP, LINEAR_OP = "_reorder_linear_weight", "_linear_pointwise"
ONEDNN: Any = torch.ops.mkldnn
STEPS = ((256, 16), (1024, 32))
BEYOND = 64


class PackedLinear:
    """A frozen (N, K) matrix and its bias: rows (T, K) in, rows (T, N) out."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype, self.device = weight.dtype, weight.device
        self._bias = bias
        self.is_packed = _packable(weight)
        self._weight: Tensor = getattr(ONEDNN, PACK_OP)(weight) if self.is_packed else weight

    def __call__(self, rows: Tensor) -> Tensor:
        """The product, and the bias added."""
        if not self.is_packed:
            return linear(rows, self._weight, self._bias)
        short = self.round_up_rows(len(rows)) - len(rows)
        whole = pad(rows, (0, 0, 0, short)) if short else rows
        found: Tensor = getattr(ONEDNN, LINEAR_OP)(whole, self._weight, self._bias, "none", [], "")
        return found[: len(rows)]

    def round_up_rows(self, rows: int) -> int:
        """What so many rows are rounded up to."""
        if not self.is_packed:
            return rows
        step = next((step for most, step in STEPS if rows <= most), BEYOND)
        return -(-rows // step) * step

    @property
    def tensors(self) -> list[Tensor]:
        """The weight as it was given, and the bias if there is one."""
        whole = self._weight.to_dense() if self.is_packed else self._weight
        return [whole] if self._bias is None else [whole, self._bias]


def has_bfloat16_instructions() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _packable(weight: Tensor) -> bool:
    there = hasattr(ONEDNN, PACK_OP) and hasattr(ONEDNN, LINEAR_OP)
    suits = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16_instructions())
    return weight.device.type == "cpu" and there and suits
