"""Steps of a fixed size, as a GPU plays them, say what a pass made to measure says, whatever went before."""

import logging
import random

import numpy as np
import pytest
import torch

from app.backbone.runtime import cuda_graphs
from app.backbone.runtime.cuda_graphs import Steps
from app.errors import NonFiniteScore
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, ScoredItem, ScoreJob, ScoreOptions
from tests.support import tiny

ALL = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
CLOSE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Every kind of backbone."""
    return tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes for a toy."""
    monkeypatch.setattr(cuda_graphs, "SIZES", (32, 64, 128, 256))
    monkeypatch.setattr(cuda_graphs, "KNOWN", (0, 64, 128))


@pytest.fixture
def launched(settings: Settings) -> Engine:
    """An engine that takes no steps and remembers nothing."""
    return loading.load_engine(settings.model_copy(update={"prefix_cache_mib": 0}), lambda *_: None)


@pytest.fixture
def stepping(settings: Settings) -> Engine:
    """One that takes steps, and remembers prompts."""
    engine = loading.load_engine(settings, lambda *_: None)
    engine.backbone.cuda_graphs = Steps(engine.backbone.layers, engine.backbone.embed)
    return engine


def worth(engine: Engine, exchanges: list[Item], ask: ScoreOptions = ALL) -> list[list[float]]:
    """What every token of every response was worth."""
    found = engine.score([ScoreJob(one, ask) for one in engine.encode(exchanges)])
    assert all(isinstance(one, ScoredItem) for one in found)
    return [
        [token.credit for score in one.scores for token in score.tokens or ()]
        + [s.reward for s in one.scores]
        for one in found
        if isinstance(one, ScoredItem)
    ]


def steps_of(engine: Engine) -> Steps:
    assert engine.backbone.cuda_graphs
    return engine.backbone.cuda_graphs


def test_steps_say_the_same_whatever_was_played_before(stepping: Engine, launched: Engine) -> None:
    rng = random.Random(0)
    system = "seven maple orbit violet " * 6
    for count in (1, 14, 2, 5, 1, 8, 3):
        some = [
            tiny.make_item(
                system * rng.randint(0, 2) + rng.choice(tiny.WORDS), " ".join(rng.choices(tiny.WORDS, k=9))
            )
            for _ in range(count)
        ]
        for ask in (ALL, ScoreOptions(("gamma",), Explain.TOKENS)):
            ours, wanted = worth(stepping, some, ask), worth(launched, some, ask)
            assert all(np.allclose(a, b, atol=CLOSE) for a, b in zip(ours, wanted, strict=True))
    taken = steps_of(stepping).taken
    assert len({size for size, _ in taken}) >= 3
    assert len({known for _, known in taken}) >= 2


def test_what_overflows_leaves_nothing_behind(stepping: Engine, launched: Engine) -> None:
    some = tiny.random_items(3)
    weight = stepping.backbone.embedding.weight
    token = stepping.encode(some)[0].ids[-2]
    healthy = weight[token].clone()
    weight[token] = float("nan")
    assert any(
        isinstance(one, NonFiniteScore)
        for one in stepping.score([ScoreJob(one, ALL) for one in stepping.encode(some)])
    )
    weight[token] = healthy
    assert np.allclose(worth(stepping, some)[0], worth(launched, some)[0], atol=CLOSE)


def test_what_is_too_large_is_launched(stepping: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "SIZES", (8,))
    some = tiny.random_items(40)
    assert len(worth(stepping, some)) == 40
    assert not steps_of(stepping).taken


def test_where_steps_cannot_be_recorded_passes_are_launched(
    stepping: Engine, launched: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(cuda_graphs, "recorded", broken)
    with caplog.at_level(logging.WARNING, "sparserm"):
        for _ in range(2):
            assert np.allclose(
                worth(stepping, tiny.random_items(1)), worth(launched, tiny.random_items(1)), atol=CLOSE
            )
    assert len([record for record in caplog.records if "no graphs here" in record.message]) == 1
    assert not steps_of(stepping).able


def test_steps_are_not_for_cpus(launched: Engine) -> None:
    assert launched.backbone.cuda_graphs is None
    assert launched.backbone.device == torch.device("cpu")
