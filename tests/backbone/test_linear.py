"""A matrix laid out for its device multiplies as it would as it was given."""

import pytest
import torch
from torch.nn.functional import linear

from app.backbone import linear as products
from app.backbone.linear import PackedLinear


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("biases", [0, 1])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_product_is_the_same_however_the_matrix_lies(
    dtype: torch.dtype, close: float, biases: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed where oneDNN is, plain where it is not, and rows may be any slice."""
    torch.manual_seed(rows)
    weight, bias = torch.randn(96, 48, dtype=dtype) / 7, torch.randn(96, dtype=dtype)
    given = torch.randn(rows, 80, dtype=dtype)[:, 16:64]
    wanted = linear(given.double(), weight.double(), bias.double() if biases else None)
    packed = PackedLinear(weight, bias if biases else None)
    monkeypatch.setattr(products, "PACK", "nothing_of_this_name")
    plain = PackedLinear(weight, bias if biases else None)
    for matrix in (packed, plain):
        found = matrix(given)
        assert found.dtype == dtype
        assert ((found - wanted).abs() <= close * (1 + wanted.abs())).all()
        assert all(map(torch.equal, matrix.tensors, [weight, bias]))
        assert len(matrix.tensors) == 1 + biases


def test_float32_is_packed_where_onednn_is() -> None:
    """Which is what makes a pass fast here; nobody would notice otherwise."""
    assert torch.backends.mkldnn.is_available() == PackedLinear(torch.ones(16, 16)).is_packed  # type: ignore[no-untyped-call]


def test_rows_come_in_few_numbers() -> None:
    """As every number of them leaves kernels in memory for good."""
    matrix = PackedLinear(torch.ones(16, 16))
    rooms = [matrix.round_up_rows(rows) for rows in range(1, 4097)]
    assert len(set(rooms)) <= 96
    assert all(rows <= room <= max(rows + 15, 1.125 * rows) for rows, room in enumerate(rooms, start=1))
