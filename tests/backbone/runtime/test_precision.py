"""Which precision a server computes in, where nobody says."""

import pytest
import torch

from app.backbone.runtime import precision
from app.data.pairs import read_pairs
from app.reward import loading
from app.settings import Settings
from benchmarks.bfloat16_agreement import compared
from tests.support.paths import EXAMPLE_PAIRS, MODELS
from tests.support.training_setup import quiet

CPU = torch.device("cpu")
EXAMPLES = EXAMPLE_PAIRS


@pytest.fixture
def undecided(settings: Settings) -> Settings:
    return settings.model_copy(update={"dtype": "auto"})


def test_only_where_nobody_said_and_only_where_it_is_faster(
    settings: Settings, undecided: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "WORTH", 0)
    assert precision.halves(undecided, CPU)
    assert not precision.halves(settings, CPU)
    monkeypatch.setattr(precision, "WORTH", 1000)
    assert not precision.halves(undecided, CPU)


def test_what_is_asked_for_is_used_and_training_is_exact(settings: Settings, undecided: Settings) -> None:
    half = settings.model_copy(update={"dtype": "bfloat16"})
    assert precision.exact(half, CPU) == loading.load_engine(half, quiet).backbone.dtype == torch.bfloat16
    assert precision.exact(undecided, CPU) == torch.float32
    assert precision.exact(undecided, torch.device("cuda")) == torch.bfloat16


def test_16_bits_are_used_only_if_they_move_no_reward(
    undecided: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "WORTH", 0)
    monkeypatch.setattr(precision, "FAITHFUL", 10)
    assert loading.load_engine(undecided, quiet).backbone.dtype == torch.bfloat16
    assert not caplog.messages
    monkeypatch.setattr(precision, "FAITHFUL", 0)
    assert loading.load_engine(undecided, quiet).backbone.dtype == torch.float32
    assert "bfloat16 would be faster, but" in caplog.text


@pytest.mark.real
def test_the_shipped_models_pass_the_gate() -> None:
    shipped = Settings(models_dir=MODELS, device="cpu", prefix_cache_mib=0)
    exact, half = (
        loading.load_engine(shipped.model_copy(update={"dtype": dtype}), quiet)
        for dtype in ("float32", "bfloat16")
    )
    exchanges = [exchange for pair in read_pairs(str(EXAMPLES)) for exchange in pair.items]
    found, _ = compared([exact, half], exchanges)
    assert set(found) == set(exact.models)
    for name, agreement in found.items():
        assert agreement.passes, (name, agreement)
        assert agreement.furthest <= precision.FAITHFUL
