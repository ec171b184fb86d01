"""Who sees whom: attention in blocks, as a GPU does it, and in pieces, against the definition."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from app.backbone.attention import RowIndices, SegmentedMask
from app.backbone.flex_attention import BLOCK_SIZE, FlexAttentionMask
from app.backbone.packing import PackedBatch, pack
from app.reward.engine import Engine
from app.types import Explain, ScoreOptions
from tests.support import tiny

ITEM = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)
SLOW = "ignore:flex_attention called without torch.compile"


def definition(packed: PackedBatch, items: list[tuple[int, ...]], window: int | None) -> torch.Tensor:
    """(T, T) which row sees which, item by item."""
    found = torch.zeros(len(packed.ids), len(packed.ids), dtype=torch.bool)
    for item, ids in enumerate(items):
        rows = packed.rows(item, 0, len(ids))
        for place, row in enumerate(rows):
            found[row, rows[max(place + 1 - (window or len(ids)), 0) : place + 1]] = True
    return found


def attended(
    seen: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cap: float | None
) -> torch.Tensor:
    heads = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(heads, 1).transpose(0, 1) for t in (k, v))
    logits = q.transpose(0, 1) @ k.mT * 0.3
    if cap:
        logits = cap * torch.tanh(logits / cap)
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


@pytest.mark.filterwarnings(SLOW)
@hypothesis_settings(max_examples=25, deadline=None)
@given(
    items=st.lists(ITEM, min_size=1, max_size=9),
    window=st.sampled_from([None, 1, 3, 7]),
    cap=st.sampled_from([None, 0.5]),
    part=st.floats(0.1, 1.0),
)
def test_both_sights_are_what_attention_means(
    items: list[tuple[int, ...]], window: int | None, cap: float | None, part: float
) -> None:
    packed = pack(items)
    read = chosen(packed, part)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(packed.ids), heads, 16, generator=generator) for heads in (4, 2, 2))
    expected = attended(definition(packed, items, window), q, k, v, cap)[read]
    for kind in (SegmentedMask, FlexAttentionMask):
        sight = kind.from_segments(packed.segments, window, read, q)
        found = sight.attend(q[read], k, v, 0.3, cap)
        assert torch.allclose(found, expected, atol=1e-5), kind


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("part", [0.1, 1.0])
@pytest.mark.parametrize("window", [None, 40, 200])
def test_long_segments_are_seen_whole(
    window: int | None, part: float, dtype: torch.dtype, close: float
) -> None:
    """Those of more queries than a strip holds."""
    rng = random.Random(0)
    prompt = tuple(rng.choices(range(9), k=150))
    items = [prompt + tuple(rng.choices(range(9), k=length)) for length in (20, 200, 400)]
    packed = pack(items)
    read = chosen(packed, part)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(packed.ids), n, 16, generator=generator).to(dtype) for n in (4, 2, 2))
    expected = attended(definition(packed, items, window), q.float(), k.float(), v.float(), None)[read]
    found = SegmentedMask.from_segments(packed.segments, window, read, q).attend(q[read], k, v, 0.3, None)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < close


def test_products_come_in_few_shapes() -> None:
    """As every shape leaves kernels in memory for good."""
    rng, shapes = random.Random(0), set()
    for _ in range(500):
        prompt = tuple(rng.choices(range(9), k=rng.randint(1, 200)))
        packed = pack([prompt + tuple(rng.choices(range(9), k=rng.randint(1, 300))) for _ in range(2)])
        views = SegmentedMask.from_segments(
            packed.segments, None, packed.computed_rows, torch.empty(0, dtype=torch.bfloat16)
        )
        shapes |= {strip.mask_bias.shape for view in views.segments for strip in view.tiles}
    assert len(shapes) <= 64


@pytest.mark.parametrize("window", [None, 40, 200])
def test_blocks_leave_out_nothing_that_is_seen(window: int | None) -> None:
    rng = random.Random(0)
    prompts = [tuple(rng.choices(range(9), k=200)) for _ in range(3)]
    items = [rng.choice(prompts) + tuple(rng.choices(range(9), k=rng.randint(1, 90))) for _ in range(12)]
    packed = pack(items)
    read = chosen(packed, 0.4)
    mask = FlexAttentionMask.from_segments(packed.segments, window, read, torch.empty(0)).block_mask
    exact = create_block_mask(mask.mask_mod, None, None, len(read), len(packed.ids), "cpu", BLOCK_SIZE)
    ours, needed = (m.to_dense()[0, 0].bool() for m in (mask, exact))
    assert (ours | ~needed).all()
    assert ours.float().mean() < 0.8
    if window is None:
        assert ours.sum() <= 1.2 * needed.sum()


@pytest.mark.filterwarnings(SLOW)
def test_an_engine_that_looks_in_blocks_says_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
    before = [
        score.reward for scores in tiny.score_items(engine, tiny.random_items(24), ask) for score in scores
    ]

    monkeypatch.setattr(engine.backbone, "sight", FlexAttentionMask)
    after = [
        score.reward for scores in tiny.score_items(engine, tiny.random_items(24), ask) for score in scores
    ]
    assert np.allclose(before, after, atol=1e-5)


def chosen(packed: PackedBatch, part: float) -> RowIndices:
    """Some of the rows."""
    rows = np.flatnonzero(np.random.default_rng(0).random(len(packed.ids)) < part)
    return rows if len(rows) else packed.computed_rows
