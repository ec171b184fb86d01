"""Drift: what is scored against what the model was made on, by caller, in constant memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from app.evaluate.audit.shift import stability
from app.reward.engine import Engine
from app.serve import drift
from app.serve.drift import Drift, Window
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import ANONYMOUS_CALLER, Score, ScoreOptions
from tests.support import tiny
from tests.support.servers import server


@pytest.fixture
def scores(engine: Engine) -> list[Score]:
    return [score for (score,) in tiny.scores(engine, tiny.babble(40), ScoreOptions(("alpha",)))]


@pytest.fixture
def watched(engine: Engine, scores: list[Score]) -> tuple[Drift, CollectorRegistry]:
    """A monitor of a model for which the scores are what is usual."""
    registry, model = CollectorRegistry(), engine.models["alpha"]
    x = model.head.standardise(torch.from_numpy(np.stack([score.projections for score in scores])))
    ranks = torch.linspace(0, 1, 201, dtype=torch.float64)
    rewards = torch.quantile(torch.tensor([score.reward for score in scores]).double(), ranks)
    usual = replace(
        model.calibration,
        rewards=rewards.repeat(2, 1),
        projections=torch.quantile(x, ranks[20:-1:20], dim=0).T,
    )
    return Drift({"alpha": replace(model, calibration=usual)}, Metrics(registry)), registry


def test_even_bins_are_stable_and_one_bin_is_not() -> None:
    assert stability(np.full((2, 10), 100)) == pytest.approx([0, 0])
    lumped = np.zeros((1, 10), dtype=np.int64)
    lumped[0, 3] = 1000
    assert stability(lumped)[0] > 1


def test_a_window_forgets_and_does_not_grow() -> None:
    window = Window(3)
    for n in range(5 * drift.HALF_WINDOW):
        window.add(np.full(3, 0 if n < 2 * drift.HALF_WINDOW else 9))
    assert window.counts[:, 0].sum() == 0
    assert drift.HALF_WINDOW <= window.counts[0].sum() <= 2 * drift.HALF_WINDOW


def test_nothing_is_said_of_too_few(watched: tuple[Drift, CollectorRegistry], scores: list[Score]) -> None:
    for score in scores:
        watched[0].observe(score, "trainer")
    assert watched[0].report("alpha") == {"trainer": {"responses": 40, "enough": False}}


def test_a_policy_that_says_one_thing_is_seen(
    watched: tuple[Drift, CollectorRegistry], scores: list[Score]
) -> None:
    monitor, registry = watched
    for score in scores * 6:
        monitor.observe(score, "varied")
        monitor.observe(scores[0], "stuck")
    told = monitor.report("alpha")
    assert told["stuck"]["projections"] > told["varied"]["projections"]
    assert told["varied"]["reward"] < 0.1
    assert told["stuck"]["reward"] > 1
    assert len(told["stuck"]["features"]) == drift.SHOWN
    labels = {"model": "alpha", "caller": "stuck", "of": "reward"}
    assert registry.get_sample_value("sparserm_drift_psi", labels) == pytest.approx(
        told["stuck"]["reward"], rel=0.2
    )


def test_callers_are_bounded(watched: tuple[Drift, CollectorRegistry], scores: list[Score]) -> None:
    for n in range(3 * drift.MOST_CALLERS):
        watched[0].observe(scores[0], f"run-{n}")
    told = watched[0].report("alpha")
    assert len(told) == drift.MOST_CALLERS + 1
    assert told[drift.OTHERS]["responses"] == 2 * drift.MOST_CALLERS


def test_steered_scores_are_no_drift(engine: Engine, watched: tuple[Drift, CollectorRegistry]) -> None:
    latent = str(engine.models["alpha"].features[0].latent)
    ((steered,),) = tiny.scores(engine, tiny.babble(1), ScoreOptions(("alpha",), steer={latent: 3.0}))
    watched[0].observe(steered, "steering")
    assert watched[0].report("alpha") == {}


@pytest.mark.anyio
async def test_drift_is_served_by_caller(engine: Engine, settings: Settings) -> None:
    async with server(engine, settings) as client:
        body = {"model": "alpha", "inputs": [{"prompt": "seven", "response": "maple"}]}
        headers = {"X-SparseRM-Caller": "run-7"}
        assert (await client.post("/v1/rewards", json=body, headers=headers)).status_code == 200
        assert (await client.post("/v1/rewards", json=body)).status_code == 200
        told = (await client.get("/v1/models/alpha/drift")).json()
        assert set(told["callers"]) == {"run-7", ANONYMOUS_CALLER}
        assert (await client.get("/v1/models/none/drift")).status_code == 404
        bad = await client.post("/v1/rewards", json=body, headers={"X-SparseRM-Caller": "a b"})
        assert bad.status_code == 422
