"""A packed weight gives the same products as the weight it was packed from."""

import pytest
import torch
from torch.nn.functional import linear

from app.backbone import linear as linear_module
from app.backbone.linear import PackedLinear


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("biases", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packing_changes_no_product(
    dtype: torch.dtype, tolerance: float, biases: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With oneDNN and without it, for rows that are a slice of a wider tensor."""
    torch.manual_seed(rows)
    weight, bias = torch.randn(96, 48, dtype=dtype) / 7, torch.randn(96, dtype=dtype)
    inputs = torch.randn(rows, 80, dtype=dtype)[:, 16:64]
    expected = linear(inputs.double(), weight.double(), bias.double() if biases else None)
    packed = PackedLinear(weight, bias if biases else None)
    monkeypatch.setattr(linear_module, "PACK_OP", "nothing_of_this_name")
    plain = PackedLinear(weight, bias if biases else None)
    for layer in (packed, plain):
        outputs = layer(inputs)
        assert outputs.dtype == dtype
        assert ((outputs - expected).abs() <= tolerance * (1 + expected.abs())).all()
        assert all(map(torch.equal, layer.tensors, [weight, bias]))
        assert len(layer.tensors) == 1 + biases


def test_float32_weights_are_packed_where_onednn_is_available() -> None:
    """Without packing, results are the same and only slower, so no other test would fail."""
    assert torch.backends.mkldnn.is_available() == PackedLinear(torch.ones(16, 16)).is_packed  # type: ignore[no-untyped-call]


def test_row_counts_are_rounded_up_to_few_values() -> None:
    """oneDNN keeps a kernel in memory for every number of rows."""
    layer = PackedLinear(torch.ones(16, 16))
    padded_counts = [layer.round_up_rows(rows) for rows in range(1, 4097)]
    assert len(set(padded_counts)) <= 96
    for rows, padded in enumerate(padded_counts, start=1):
        assert rows <= padded <= max(rows + 15, 1.125 * rows)
