"""Linear layers with frozen weights.

On a CPU, oneDNN reorders a weight matrix once into the blocked layout that its kernels read. At the shapes of
small models a product with a reordered matrix is up to 1.5 times as fast as one that reorders it on every
call. oneDNN keeps a kernel of half a MiB for every number of rows it has run, so row counts are rounded up
to few values (benchmarks/LOG.md).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

PACK_OP = "_reorder_linear_weight"
LINEAR_OP = "_linear_pointwise"
ONEDNN: Any = torch.ops.mkldnn
ROW_MULTIPLES = ((256, 16), (1024, 32))
"""(largest number of rows, multiple that such numbers are rounded up to)."""
LARGE_ROW_MULTIPLE = 64
"""The multiple for more rows than that."""


class PackedLinear:
    """A frozen (N, K) weight matrix and its bias: maps rows (T, K) to rows (T, N)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype, self.device = weight.dtype, weight.device
        self._bias = bias
        self.is_packed = _can_pack(weight)
        self._weight: Tensor = getattr(ONEDNN, PACK_OP)(weight) if self.is_packed else weight

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply rows by the transposed weight and add the bias."""
        if not self.is_packed:
            return linear(rows, self._weight, self._bias)
        missing = self.round_up_rows(len(rows)) - len(rows)
        padded = pad(rows, (0, 0, 0, missing)) if missing else rows
        product: Tensor = getattr(ONEDNN, LINEAR_OP)(padded, self._weight, self._bias, "none", [], "")
        return product[: len(rows)]

    def round_up_rows(self, rows: int) -> int:
        """Return the number of rows that is computed for `rows` rows of input, padding included."""
        if not self.is_packed:
            return rows
        multiple = next((multiple for limit, multiple in ROW_MULTIPLES if rows <= limit), LARGE_ROW_MULTIPLE)
        return -(-rows // multiple) * multiple

    @property
    def tensors(self) -> list[Tensor]:
        """The weight in its original layout, and the bias if there is one."""
        weight = self._weight.to_dense() if self.is_packed else self._weight
        return [weight] if self._bias is None else [weight, self._bias]


def has_bfloat16_instructions() -> bool:
    """Return whether this CPU has instructions for bfloat16 products."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _can_pack(weight: Tensor) -> bool:
    """Return whether this build of torch has the packing operations and they are fast for this dtype here."""
    available = hasattr(ONEDNN, PACK_OP) and hasattr(ONEDNN, LINEAR_OP)
    fast = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16_instructions())
    return weight.device.type == "cpu" and available and fast
