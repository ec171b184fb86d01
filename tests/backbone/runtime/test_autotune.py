"""The batch size and the dtype are measured unless the settings fix them."""

import pytest
import torch

from app.backbone.runtime import autotune
from app.data.pairs import read_pairs
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from benchmarks.bfloat16_agreement import compare_engines
from tests.support.paths import EXAMPLE_PAIRS, MODELS
from tests.support.servers import open_client
from tests.support.training_setup import ignore_progress

CPU = torch.device("cpu")


def test_the_smallest_batch_size_with_nearly_the_best_rate_is_chosen() -> None:
    assert autotune.choose_batch_tokens({512: 0.50, 1024: 0.92, 2048: 1.80}) == 1024
    assert autotune.choose_batch_tokens({512: 0.50, 1024: 0.99, 2048: 1.96}) == 512
    assert autotune.choose_batch_tokens({512: 0.50, 1024: 0.80, 2048: 1.20}) == 2048


@pytest.mark.anyio
async def test_info_reports_the_measured_or_the_configured_batch_size(
    engine: Engine, settings: Settings
) -> None:
    unset = settings.model_copy(update={"max_batch_tokens": 0, "dialects": "tei"})
    async with open_client(engine, unset) as client:
        measured = (await client.get("/info")).json()["max_batch_tokens"]
        assert measured in autotune.BATCH_TOKEN_CANDIDATES["cpu"]
    fixed = settings.model_copy(update={"max_batch_tokens": 300, "dialects": "tei"})
    async with open_client(engine, fixed) as client:
        assert (await client.get("/info")).json()["max_batch_tokens"] == 300


@pytest.fixture
def auto_dtype(settings: Settings) -> Settings:
    return settings.model_copy(update={"dtype": "auto"})


def test_bfloat16_is_chosen_only_without_a_configured_dtype_and_where_it_is_faster(
    settings: Settings, auto_dtype: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "MIN_BFLOAT16_SPEEDUP", 0)
    assert autotune.is_bfloat16_faster(auto_dtype, CPU)
    assert not autotune.is_bfloat16_faster(settings, CPU)
    monkeypatch.setattr(autotune, "MIN_BFLOAT16_SPEEDUP", 1000)
    assert not autotune.is_bfloat16_faster(auto_dtype, CPU)


def test_a_configured_dtype_is_used_and_training_uses_float32_on_a_cpu(
    settings: Settings, auto_dtype: Settings
) -> None:
    bfloat16 = settings.model_copy(update={"dtype": "bfloat16"})
    assert autotune.resolve_dtype(bfloat16, CPU) == torch.bfloat16
    assert loading.load_engine(bfloat16, ignore_progress).backbone.dtype == torch.bfloat16
    assert autotune.resolve_dtype(auto_dtype, CPU) == torch.float32
    assert autotune.resolve_dtype(auto_dtype, torch.device("cuda")) == torch.bfloat16


def test_bfloat16_is_used_only_if_it_moves_no_reward(
    auto_dtype: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autotune, "MIN_BFLOAT16_SPEEDUP", 0)
    monkeypatch.setattr(autotune, "MAX_PROBE_SHIFT", 10)
    assert loading.load_engine(auto_dtype, ignore_progress).backbone.dtype == torch.bfloat16
    assert not caplog.messages
    monkeypatch.setattr(autotune, "MAX_PROBE_SHIFT", 0)
    assert loading.load_engine(auto_dtype, ignore_progress).backbone.dtype == torch.float32
    assert "bfloat16 would be faster, but" in caplog.text


@pytest.mark.real
def test_the_shipped_models_agree_in_bfloat16_and_float32() -> None:
    shipped = Settings(models_dir=MODELS, device="cpu", prefix_cache_mib=0)
    float32_engine, bfloat16_engine = (
        loading.load_engine(shipped.model_copy(update={"dtype": dtype}), ignore_progress)
        for dtype in ("float32", "bfloat16")
    )
    items = [item for pair in read_pairs(str(EXAMPLE_PAIRS)) for item in pair.items]
    agreements, _ = compare_engines([float32_engine, bfloat16_engine], items)
    assert set(agreements) == set(float32_engine.models)
    for name, agreement in agreements.items():
        assert agreement.is_accepted, (name, agreement)
        assert agreement.max_difference <= autotune.MAX_PROBE_SHIFT
