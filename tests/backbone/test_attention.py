"""The attention masks for GPUs and for CPUs, against attention computed from its definition."""

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
IGNORE_UNCOMPILED = "ignore:flex_attention called without torch.compile"


def define_mask(packed: PackedBatch, items: list[tuple[int, ...]], window: int | None) -> torch.Tensor:
    """(T, T) which row attends to which, item by item."""
    mask = torch.zeros(len(packed.ids), len(packed.ids), dtype=torch.bool)
    for item, ids in enumerate(items):
        rows = packed.rows(item, 0, len(ids))
        for position, row in enumerate(rows):
            mask[row, rows[max(position + 1 - (window or len(ids)), 0) : position + 1]] = True
    return mask


def define_attention(
    mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    heads = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(heads, 1).transpose(0, 1) for t in (k, v))
    logits = q.transpose(0, 1) @ k.mT * 0.3
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


@pytest.mark.filterwarnings(IGNORE_UNCOMPILED)
@hypothesis_settings(max_examples=25, deadline=None)
@given(
    items=st.lists(ITEM, min_size=1, max_size=9),
    window=st.sampled_from([None, 1, 3, 7]),
    softcap=st.sampled_from([None, 0.5]),
    share=st.floats(0.1, 1.0),
)
def test_both_masks_compute_attention_as_defined(
    items: list[tuple[int, ...]], window: int | None, softcap: float | None, share: float
) -> None:
    packed = pack(items)
    query_rows = draw_rows(packed, share)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(packed.ids), heads, 16, generator=generator) for heads in (4, 2, 2))
    expected = define_attention(define_mask(packed, items, window), q, k, v, softcap)[query_rows]
    for mask_type in (SegmentedMask, FlexAttentionMask):
        mask = mask_type.from_segments(packed.segments, window, query_rows, q)
        attended = mask.attend(q[query_rows], k, v, 0.3, softcap)
        assert torch.allclose(attended, expected, atol=1e-5), mask_type


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("window", [None, 40, 200])
def test_segments_longer_than_a_query_tile_attend_to_all_their_keys(
    window: int | None, share: float, dtype: torch.dtype, tolerance: float
) -> None:
    rng = random.Random(0)
    prompt = tuple(rng.choices(range(9), k=150))
    items = [prompt + tuple(rng.choices(range(9), k=length)) for length in (20, 200, 400)]
    packed = pack(items)
    query_rows = draw_rows(packed, share)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(packed.ids), n, 16, generator=generator).to(dtype) for n in (4, 2, 2))
    exact = define_attention(define_mask(packed, items, window), q.float(), k.float(), v.float(), None)
    mask = SegmentedMask.from_segments(packed.segments, window, query_rows, q)
    attended = mask.attend(q[query_rows], k, v, 0.3, None)
    assert attended.dtype == dtype
    assert (attended - exact[query_rows]).abs().max() < tolerance


def test_16_bit_products_have_few_shapes() -> None:
    """oneDNN keeps a kernel in memory for every shape."""
    rng, shapes = random.Random(0), set()
    for _ in range(500):
        prompt = tuple(rng.choices(range(9), k=rng.randint(1, 200)))
        packed = pack([prompt + tuple(rng.choices(range(9), k=rng.randint(1, 300))) for _ in range(2)])
        mask = SegmentedMask.from_segments(
            packed.segments, None, packed.computed_rows, torch.empty(0, dtype=torch.bfloat16)
        )
        shapes |= {tile.mask_bias.shape for segment in mask.segments for tile in segment.tiles}
    assert len(shapes) <= 64


@pytest.mark.parametrize("window", [None, 40, 200])
def test_the_block_mask_covers_every_visible_pair(window: int | None) -> None:
    rng = random.Random(0)
    prompts = [tuple(rng.choices(range(9), k=200)) for _ in range(3)]
    items = [rng.choice(prompts) + tuple(rng.choices(range(9), k=rng.randint(1, 90))) for _ in range(12)]
    packed = pack(items)
    query_rows = draw_rows(packed, 0.4)
    mask = FlexAttentionMask.from_segments(packed.segments, window, query_rows, torch.empty(0)).block_mask
    exact = create_block_mask(mask.mask_mod, None, None, len(query_rows), len(packed.ids), "cpu", BLOCK_SIZE)
    ours, needed = (m.to_dense()[0, 0].bool() for m in (mask, exact))
    assert (ours | ~needed).all()
    assert ours.float().mean() < 0.8
    if window is None:
        assert ours.sum() <= 1.2 * needed.sum()


@pytest.mark.filterwarnings(IGNORE_UNCOMPILED)
def test_an_engine_with_flex_attention_computes_the_same_rewards(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
    before = [
        score.reward
        for scores in tiny.score_items(engine, tiny.random_items(24), options)
        for score in scores
    ]

    monkeypatch.setattr(engine.backbone, "mask_type", FlexAttentionMask)
    after = [
        score.reward
        for scores in tiny.score_items(engine, tiny.random_items(24), options)
        for score in scores
    ]
    assert np.allclose(before, after, atol=1e-5)


def draw_rows(packed: PackedBatch, share: float) -> RowIndices:
    """About a share of the rows, at least one."""
    rows = np.flatnonzero(np.random.default_rng(0).random(len(packed.ids)) < share)
    return rows if len(rows) else packed.computed_rows
