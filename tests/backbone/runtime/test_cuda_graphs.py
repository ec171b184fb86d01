"""Forward passes of fixed size, as CUDA graphs replay them, compute the scores of ordinary forward passes."""

import logging
import random

import numpy as np
import pytest
import torch

from app.backbone.runtime import cuda_graphs
from app.backbone.runtime.cuda_graphs import CudaGraphRunner
from app.errors import NonFiniteScore
from app.reward import loading
from app.reward.engine import Engine
from app.scores import ScoredItem
from app.settings import Settings
from app.types import Explain, Item, ScoreJob, ScoreOptions
from tests.support import tiny

ALL_MODELS = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a models folder for each architecture."""
    return tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "NEW_ROW_SIZES", (32, 64, 128, 256))
    monkeypatch.setattr(cuda_graphs, "CACHED_ROW_SIZES", (0, 64, 128))


@pytest.fixture
def plain_engine(settings: Settings) -> Engine:
    """An engine without graphs and without prefix cache."""
    return loading.load_engine(settings.model_copy(update={"prefix_cache_mib": 0}), lambda *_: None)


@pytest.fixture
def graph_engine(settings: Settings) -> Engine:
    """An engine with graphs and a prefix cache."""
    engine = loading.load_engine(settings, lambda *_: None)
    engine.backbone.cuda_graphs = CudaGraphRunner(engine.backbone.layers, engine.backbone.embed)
    return engine


def score_numbers(engine: Engine, items: list[Item], options: ScoreOptions = ALL_MODELS) -> list[list[float]]:
    """The token credits and rewards of each item."""
    results = engine.score([ScoreJob(encoded, options) for encoded in engine.encode(items)])
    assert all(isinstance(result, ScoredItem) for result in results)
    return [
        [token.credit for score in result.scores for token in score.tokens or ()]
        + [score.reward for score in result.scores]
        for result in results
        if isinstance(result, ScoredItem)
    ]


def graph_runner(engine: Engine) -> CudaGraphRunner:
    assert engine.backbone.cuda_graphs
    return engine.backbone.cuda_graphs


def test_graphs_compute_the_same_scores_whatever_ran_before(
    graph_engine: Engine, plain_engine: Engine
) -> None:
    rng = random.Random(0)
    system = "seven maple orbit violet " * 6
    for count in (1, 14, 2, 5, 1, 8, 3):
        items = [
            tiny.make_item(
                system * rng.randint(0, 2) + rng.choice(tiny.WORDS), " ".join(rng.choices(tiny.WORDS, k=9))
            )
            for _ in range(count)
        ]
        for options in (ALL_MODELS, ScoreOptions(("gamma",), Explain.TOKENS)):
            actual = score_numbers(graph_engine, items, options)
            expected = score_numbers(plain_engine, items, options)
            assert all(np.allclose(a, b, atol=TOLERANCE) for a, b in zip(actual, expected, strict=True))
    sizes = graph_runner(graph_engine).captured_sizes
    assert len({new_rows for new_rows, _ in sizes}) >= 3
    assert len({cached_rows for _, cached_rows in sizes}) >= 2


def test_non_finite_values_do_not_affect_later_batches(graph_engine: Engine, plain_engine: Engine) -> None:
    items = tiny.random_items(3)
    weight = graph_engine.backbone.embedding.weight
    token = graph_engine.encode(items)[0].ids[-2]
    healthy = weight[token].clone()
    weight[token] = float("nan")
    assert any(
        isinstance(result, NonFiniteScore)
        for result in graph_engine.score([ScoreJob(item, ALL_MODELS) for item in graph_engine.encode(items)])
    )
    weight[token] = healthy
    actual, expected = score_numbers(graph_engine, items)[0], score_numbers(plain_engine, items)[0]
    assert np.allclose(actual, expected, atol=TOLERANCE)


def test_batches_over_the_largest_size_run_without_graphs(
    graph_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "NEW_ROW_SIZES", (8,))
    items = tiny.random_items(40)
    assert len(score_numbers(graph_engine, items)) == 40
    assert not graph_runner(graph_engine).captured_sizes


def test_forward_passes_run_without_graphs_where_capture_fails(
    graph_engine: Engine,
    plain_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(cuda_graphs, "capture_graph", fail)
    with caplog.at_level(logging.WARNING, "sparserm"):
        for _ in range(2):
            items = tiny.random_items(1)
            actual, expected = score_numbers(graph_engine, items), score_numbers(plain_engine, items)
            assert np.allclose(actual, expected, atol=TOLERANCE)
    assert len([record for record in caplog.records if "no graphs here" in record.message]) == 1
    assert not graph_runner(graph_engine).is_supported


def test_a_cpu_uses_no_graphs(plain_engine: Engine) -> None:
    assert plain_engine.backbone.cuda_graphs is None
    assert plain_engine.backbone.device == torch.device("cpu")
