"""Composites: the rewards of several models combined into one, whose explanation still sums to it."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import BundleError, InvalidInput
from app.reward import loading
from app.reward.composite import load_composites
from app.reward.engine import Engine
from app.scores import Score
from app.settings import Settings
from app.types import Explain, ScoreOptions
from tests.support import tiny
from tests.support.servers import open_client

ALL = ScoreOptions(tiny.COMPOSITE_NAMES, Explain.TOKENS, top_k=10**6, length_control=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = tiny.build_models(tmp_path)
    (settings.models_dir / "composites.toml").write_text(tiny.COMPOSITES)
    return settings


@pytest.fixture
def engine(settings: Settings) -> Engine:
    return loading.load_engine(settings, lambda *_: None)


def sum_explanation(score: Score) -> float:
    contributions = sum(feature.contribution for feature in score.features)
    return score.baseline + contributions + score.length_correction - score.penalty + score.residual


def test_features_parts_concepts_and_tokens_sum_to_the_reward(engine: Engine) -> None:
    for scores in tiny.score_items(engine, tiny.random_items(8), ALL):
        for score in scores:
            assert sum_explanation(score) == pytest.approx(score.reward, abs=1e-9)
            assert sum(part.contribution for part in score.parts) == pytest.approx(score.reward, abs=1e-9)
            assert sum(part.weight for part in score.parts) == pytest.approx(1)
            assert abs(score.residual) <= 1e-5
            concepts = sum(concept.contribution for concept in score.concepts)
            features = sum(feature.contribution for feature in score.features)
            assert concepts == pytest.approx(features, abs=1e-9)
            assert score.tokens
            credits_sum = sum(token.credit for token in score.tokens)
            credited = score.baseline + credits_sum + score.length_correction - score.penalty
            assert credited == pytest.approx(score.reward, abs=1e-5)


def test_rewards_are_weighted_on_one_scale(engine: Engine) -> None:
    ((both, alpha, beta),) = tiny.score_items(
        engine, tiny.random_items(1), ScoreOptions(("both", "alpha", "beta"))
    )
    scaled_alpha, scaled_beta = (scale_reward(engine, score) for score in (alpha, beta))
    assert both.reward == pytest.approx(0.75 * scaled_alpha + 0.25 * scaled_beta, abs=1e-9)
    assert both.distance == max(alpha.distance, beta.distance)


def test_worst_mode_is_the_lowest_reward(engine: Engine) -> None:
    for (worst,) in tiny.score_items(engine, tiny.random_items(12), ScoreOptions(("worst",))):
        assert [part.weight for part in worst.parts].count(1.0) == 1
        assert worst.reward == pytest.approx(min(scale_reward(engine, score) for score in worst.part_scores))


def scale_reward(engine: Engine, score: Score) -> float:
    quantiles = engine.models[score.model].calibration.reward_quantiles[0]
    return (score.reward - float(quantiles.mean())) / float(quantiles.std())


def test_cautious_mode_subtracts_uncertainty(engine: Engine) -> None:
    ((careful,),) = tiny.score_items(engine, tiny.random_items(1), ScoreOptions(("careful",)))
    assert careful.penalty > 0
    penalties = [
        0.5 * part.scale * score.uncertainty
        for part, score in zip(careful.parts, careful.part_scores, strict=True)
    ]
    assert careful.penalty == pytest.approx(sum(penalties))


def test_margin_features_sum_unless_the_models_differ(engine: Engine) -> None:
    (a, worst, _), (b, _, _) = tiny.score_items(
        engine, tiny.random_items(2), ScoreOptions(tiny.COMPOSITE_NAMES)
    )
    margin = sum(feature.contribution for feature in engine.explain_margin(a, b, 10**6))
    assert margin == pytest.approx(a.reward - b.reward, abs=1e-9)
    reordered = replace(worst, parts=worst.parts[1:] + worst.parts[:1])
    with pytest.raises(InvalidInput, match="different models"):
        engine.explain_margin(worst, reordered, 5)


@pytest.mark.anyio
async def test_composites_are_served_under_their_name(engine: Engine, settings: Settings) -> None:
    async with open_client(engine, settings) as client:
        body = {"model": ["both", "alpha"], "inputs": [{"prompt": "seven", "response": "maple"}]}
        both, alpha = (await client.post("/v1/rewards", json=body)).json()["data"]
        assert {part["model"] for part in both["parts"]} == {"alpha", "beta"}
        assert both["percentile"] is None
        assert "parts" not in alpha
        pair = {"model": "both", "pairs": [{"prompt": "seven", "chosen": "maple", "rejected": "glass"}]}
        (row,) = (await client.post("/v1/compare", json=pair)).json()["data"]
        assert row["probability"] is None
        assert {feature["model"] for feature in row["features"]} <= {"alpha", "beta"}
        assert (await client.get("/v1/models/both")).json()["composite"]["weights"] == {"alpha": 3, "beta": 1}
        assert (await client.get("/v1/models/both/features")).status_code == 404
        callers = (await client.get("/v1/models/beta/drift")).json()["callers"]
        assert sum(window["responses"] for window in callers.values()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x]\nweights = {}", "needs at least one model"),
        ("[x]\nweights = { alpha = -1 }", "above 0"),
        ("[x]\nweights = { alpha = 1 }\nmood = 'good'", "mood"),
        ("[x\n", "composites.toml"),
    ],
)
def test_rejects_an_invalid_composite(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "composites.toml").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_composites(tmp_path / "composites.toml")


@pytest.mark.parametrize("text", ["[x]\nweights = { omega = 1 }", "[alpha]\nweights = { beta = 1 }"])
def test_rejects_a_composite_of_unknown_models_or_with_a_model_name(settings: Settings, text: str) -> None:
    (settings.models_dir / "composites.toml").write_text(text)
    with pytest.raises(BundleError, match=r"composites\.toml"):
        loading.load_engine(settings, lambda *_: None)
