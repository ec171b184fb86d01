"""Drift monitoring: scored responses against the training data, per caller, in bounded memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from app.evaluate.audit.shift import stability_index
from app.reward.engine import Engine
from app.reward.reward_model import Concept
from app.scores import Score
from app.serve import drift
from app.serve.batching.request_context import ANONYMOUS_CALLER
from app.serve.drift import DriftMonitor, DriftWindow
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import ScoreOptions
from tests.support import tiny
from tests.support.servers import open_client


@pytest.fixture
def scores(engine: Engine) -> list[Score]:
    return [score for (score,) in tiny.score_items(engine, tiny.random_items(40), ScoreOptions(("alpha",)))]


@pytest.fixture
def monitored(engine: Engine, scores: list[Score]) -> tuple[DriftMonitor, CollectorRegistry]:
    """A monitor of a model whose calibration fits exactly these scores."""
    registry, model = CollectorRegistry(), engine.models["alpha"]
    standardised = model.head.standardise(torch.from_numpy(np.stack([score.projections for score in scores])))
    ranks = torch.linspace(0, 1, 201, dtype=torch.float64)
    rewards = torch.quantile(torch.tensor([score.reward for score in scores]).double(), ranks)
    calibration = replace(
        model.calibration,
        reward_quantiles=rewards.repeat(2, 1),
        standardised_deciles=torch.quantile(standardised, ranks[20:-1:20], dim=0).T,
    )
    return DriftMonitor({"alpha": replace(model, calibration=calibration)}, Metrics(registry)), registry


def test_even_bins_are_stable_and_a_single_full_bin_is_not() -> None:
    assert stability_index(np.full((2, 10), 100)) == pytest.approx([0, 0])
    single = np.zeros((1, 10), dtype=np.int64)
    single[0, 3] = 1000
    assert stability_index(single)[0] > 1


def test_a_window_drops_old_responses_and_does_not_grow() -> None:
    window = DriftWindow(3, 1)
    for n in range(5 * drift.HALF_WINDOW):
        window.add(np.full(3, 0 if n < 2 * drift.HALF_WINDOW else 9), np.array([float(n)]))
    assert window.counts[:, 0].sum() == 0
    assert drift.HALF_WINDOW <= window.counts[0].sum() <= 2 * drift.HALF_WINDOW
    assert window.mean_concepts() == pytest.approx([4 * drift.HALF_WINDOW - 0.5])
    assert window.change_of_concepts() == pytest.approx([drift.HALF_WINDOW])


def test_a_window_without_two_halves_has_no_change() -> None:
    window = DriftWindow(1, 2)
    for _ in range(drift.HALF_WINDOW):
        window.add(np.zeros(1, dtype=int), np.array([1.0, -2.0]))
    assert window.mean_concepts() == pytest.approx([1, -2])
    assert window.change_of_concepts() is None


def test_concepts_say_what_a_policy_is_rewarded_for(
    engine: Engine, scores: list[Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that repeats the response that expresses a concept most moves the concept's mean."""
    monkeypatch.setattr(drift, "MIN_RESPONSES", 100)
    monkeypatch.setattr(drift, "HALF_WINDOW", 120)
    model = engine.models["alpha"]
    latents = tuple(feature.latent for feature in model.features if feature.sign > 0)[:4]
    model = replace(model, concepts=(Concept("names a river", latents, 1, score=0.9, items=20),))
    registry = CollectorRegistry()
    monitor = DriftMonitor({"alpha": model}, Metrics(registry))
    indices = model.concept_indices["names a river"]
    parts = [float(score.contributions[indices].sum()) for score in scores]
    for n in range(240):
        monitor.observe(scores[n % 40] if n < 120 else scores[int(np.argmax(parts))], "trainer")
    [concept] = monitor.report("alpha")["trainer"]["concepts"]
    assert concept["name"] == "names a river"
    assert concept["mean"] == pytest.approx((np.mean(parts) + max(parts)) / 2)
    assert concept["change"] == pytest.approx(max(parts) - np.mean(parts))
    labels = {"model": "alpha", "caller": "trainer", "concept": "names a river"}
    published = registry.get_sample_value("sparserm_concept_contribution", labels)
    assert published is not None
    assert published > np.mean(parts)
    monitor.watch({})
    assert registry.get_sample_value("sparserm_concept_contribution", labels) is None


def test_too_few_responses_are_not_compared(
    monitored: tuple[DriftMonitor, CollectorRegistry], scores: list[Score]
) -> None:
    monitor, _ = monitored
    for score in scores:
        monitor.observe(score, "trainer")
    assert monitor.report("alpha") == {"trainer": {"responses": 40, "enough": False}}


def test_a_policy_that_repeats_one_response_is_detected(
    monitored: tuple[DriftMonitor, CollectorRegistry], scores: list[Score]
) -> None:
    monitor, registry = monitored
    for score in scores * 6:
        monitor.observe(score, "varied")
        monitor.observe(scores[0], "repetitive")
    report = monitor.report("alpha")
    assert report["repetitive"]["projections"] > report["varied"]["projections"]
    assert report["varied"]["reward"] < 0.1
    assert report["repetitive"]["reward"] > 1
    assert len(report["repetitive"]["features"]) == drift.MAX_REPORTED_FEATURES
    labels = {"model": "alpha", "caller": "repetitive", "of": "reward"}
    assert registry.get_sample_value("sparserm_drift_psi", labels) == pytest.approx(
        report["repetitive"]["reward"], rel=0.2
    )


def test_the_number_of_callers_is_bounded(
    monitored: tuple[DriftMonitor, CollectorRegistry], scores: list[Score]
) -> None:
    monitor, _ = monitored
    for n in range(3 * drift.MAX_CALLERS):
        monitor.observe(scores[0], f"run-{n}")
    report = monitor.report("alpha")
    assert len(report) == drift.MAX_CALLERS + 1
    assert report[drift.OTHER_CALLERS]["responses"] == 2 * drift.MAX_CALLERS


def test_steered_scores_are_not_counted(
    engine: Engine, monitored: tuple[DriftMonitor, CollectorRegistry]
) -> None:
    monitor, _ = monitored
    latent = str(engine.models["alpha"].features[0].latent)
    options = ScoreOptions(("alpha",), steer={latent: 3.0})
    ((steered,),) = tiny.score_items(engine, tiny.random_items(1), options)
    monitor.observe(steered, "steering")
    assert monitor.report("alpha") == {}


@pytest.mark.anyio
async def test_drift_is_reported_per_caller(engine: Engine, settings: Settings) -> None:
    async with open_client(engine, settings) as client:
        body = {"model": "alpha", "inputs": [{"prompt": "seven", "response": "maple"}]}
        headers = {"X-SparseRM-Caller": "run-7"}
        assert (await client.post("/v1/rewards", json=body, headers=headers)).status_code == 200
        assert (await client.post("/v1/rewards", json=body)).status_code == 200
        report = (await client.get("/v1/models/alpha/drift")).json()
        assert set(report["callers"]) == {"run-7", ANONYMOUS_CALLER}
        assert (await client.get("/v1/models/none/drift")).status_code == 404
        invalid = await client.post("/v1/rewards", json=body, headers={"X-SparseRM-Caller": "a b"})
        assert invalid.status_code == 422
