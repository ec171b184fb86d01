"""Composites: several heads as one reward whose reasons still sum to it."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import BundleError, InvalidInput
from app.reward import loading
from app.reward.composite import load
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Score, ScoreOptions
from tests.support import tiny
from tests.support.servers import server

TOML = """
[both]
about = "alpha, and a little beta"
weights = { alpha = 3, beta = 1 }

[worst]
mode = "worst"
weights = { alpha = 1, beta = 1, gamma = 1 }

[careful]
mode = "cautious"
penalty = 0.5
weights = { alpha = 1, gamma = 1 }
"""
NAMES = ("both", "worst", "careful")
EVERYTHING = ScoreOptions(NAMES, Explain.TOKENS, top_k=10**6, clusters=True, length_control=True)


@pytest.fixture
def made(tmp_path: Path) -> Settings:
    settings = tiny.build_models(tmp_path)
    (settings.models_dir / "composites.toml").write_text(TOML)
    return settings


@pytest.fixture
def blended(made: Settings) -> Engine:
    return loading.load_engine(made, lambda *_: None)


def total(score: Score) -> float:
    shares = sum(one.contribution for one in score.features)
    return score.baseline + shares + score.length_correction - score.penalty + score.residual


def test_a_composite_sums_in_every_way(blended: Engine) -> None:
    for scores in tiny.score_items(blended, tiny.random_items(8), EVERYTHING):
        for score in scores:
            assert total(score) == pytest.approx(score.reward, abs=1e-9)
            assert sum(part.contribution for part in score.parts) == pytest.approx(score.reward, abs=1e-9)
            assert sum(part.weight for part in score.parts) == pytest.approx(1)
            assert abs(score.residual) <= 1e-5
            clusters = sum(one.contribution for one in score.clusters)
            assert clusters == pytest.approx(sum(one.contribution for one in score.features), abs=1e-9)
            assert score.tokens
            earned = sum(one.credit for one in score.tokens)
            credited = score.baseline + earned + score.length_correction - score.penalty
            assert credited == pytest.approx(score.reward, abs=1e-5)


def test_heads_are_weighed_on_one_scale(blended: Engine) -> None:
    ((both, alpha, beta),) = tiny.score_items(
        blended, tiny.random_items(1), ScoreOptions(("both", "alpha", "beta"))
    )
    levels = []
    for score in (alpha, beta):
        table = blended.models[score.model].calibration.reward_quantiles[0]
        levels.append((score.reward - float(table.mean())) / float(table.std()))
    assert both.reward == pytest.approx(0.75 * levels[0] + 0.25 * levels[1], abs=1e-9)
    assert both.distance == max(alpha.distance, beta.distance)


def test_the_worst_case_is_the_lowest_head(blended: Engine) -> None:
    for (worst,) in tiny.score_items(blended, tiny.random_items(12), ScoreOptions(("worst",))):
        assert [part.weight for part in worst.parts].count(1.0) == 1
        assert worst.reward == pytest.approx(min(_levels(blended, worst)))


def _levels(blended: Engine, score: Score) -> list[float]:
    found = []
    for head in score.part_scores:
        table = blended.models[head.model].calibration.reward_quantiles[0]
        found.append((head.reward - float(table.mean())) / float(table.std()))
    return found


def test_a_cautious_one_pays_for_doubt(blended: Engine) -> None:
    ((careful,),) = tiny.score_items(blended, tiny.random_items(1), ScoreOptions(("careful",)))
    assert careful.penalty > 0
    doubts = [
        0.5 * part.scale * h.uncertainty for part, h in zip(careful.parts, careful.part_scores, strict=True)
    ]
    assert careful.penalty == pytest.approx(sum(doubts))


def test_comparisons_sum_or_say_why_not(blended: Engine) -> None:
    (a, worst, _), (b, _, _) = tiny.score_items(blended, tiny.random_items(2), ScoreOptions(NAMES))
    margin = sum(one.contribution for one in blended.explain_margin(a, b, 10**6))
    assert margin == pytest.approx(a.reward - b.reward, abs=1e-9)
    other = replace(worst, parts=worst.parts[1:] + worst.parts[:1])
    with pytest.raises(InvalidInput, match="different heads"):
        blended.explain_margin(worst, other, 5)


@pytest.mark.anyio
async def test_composites_are_served_under_their_name(blended: Engine, made: Settings) -> None:
    async with server(blended, made) as client:
        body = {"model": ["both", "alpha"], "inputs": [{"prompt": "seven", "response": "maple"}]}
        both, alpha = (await client.post("/v1/rewards", json=body)).json()["data"]
        assert {part["model"] for part in both["parts"]} == {"alpha", "beta"}
        assert both["percentile"] is None
        assert "parts" not in alpha
        pair = {"model": "both", "pairs": [{"prompt": "seven", "chosen": "maple", "rejected": "glass"}]}
        (row,) = (await client.post("/v1/compare", json=pair)).json()["data"]
        assert row["probability"] is None
        assert {one["model"] for one in row["features"]} <= {"alpha", "beta"}
        assert (await client.get("/v1/models/both")).json()["composite"]["weights"] == {"alpha": 3, "beta": 1}
        assert (await client.get("/v1/models/both/features")).status_code == 404
        told = (await client.get("/v1/models/beta/drift")).json()["callers"]
        assert sum(window["responses"] for window in told.values()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[x]\nweights = {}", "needs heads"),
        ("[x]\nweights = { alpha = -1 }", "above 0"),
        ("[x]\nweights = { alpha = 1 }\nmood = 'good'", "mood"),
        ("[x\n", "composites.toml"),
    ],
)
def test_a_composite_that_makes_no_sense_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "composites.toml").write_text(text)
    with pytest.raises(BundleError, match=says):
        load(tmp_path / "composites.toml")


@pytest.mark.parametrize("text", ["[x]\nweights = { omega = 1 }", "[alpha]\nweights = { beta = 1 }"])
def test_a_composite_of_nobody_is_refused(made: Settings, text: str) -> None:
    (made.models_dir / "composites.toml").write_text(text)
    with pytest.raises(BundleError, match=r"composites\.toml"):
        loading.load_engine(made, lambda *_: None)
