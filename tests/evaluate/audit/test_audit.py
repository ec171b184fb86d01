"""Trust, tested: length control, explanations acted on, doubt, strangers, steering; on tiny real models."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from app.data.pairs import read_pairs
from app.evaluate.audit import (
    attacks,
    audit,
    faithfulness,
    out_of_distribution,
    paraphrases,
    robustness,
    steering,
    uncertainty,
)
from app.reward.calibration import interpolate
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train import calibration, jobs
from app.types import Explain, ScoreOptions
from tests.support import tiny
from tests.support.training_setup import order, quiet

TEXT = "It's true that cats don't like water. Some \"brave\" ones swim, and color does not matter! Try it."


def test_length_control_is_exact_and_can_be_switched_off(engine: Engine) -> None:
    exchanges = tiny.random_items(12)
    plain, controlled = (
        tiny.score_items(
            engine, exchanges, ScoreOptions(("alpha",), Explain.TOKENS, top_k=tiny.K, length_control=on)
        )
        for on in (False, True)
    )
    moved = False
    for (before,), (after,) in zip(plain, controlled, strict=True):
        assert before.length_correction == 0
        assert after.reward == pytest.approx(before.reward + after.length_correction, abs=1e-9)
        total = after.baseline + sum(f.contribution for f in after.features) + after.length_correction
        assert total + after.residual == pytest.approx(after.reward, abs=1e-9)
        assert abs(after.residual) <= 1e-5
        assert after.tokens
        credited = after.baseline + sum(t.credit for t in after.tokens) + after.length_correction
        assert credited == pytest.approx(after.reward, abs=1e-5)
        moved |= after.length_correction != 0
    assert moved


def test_length_control_takes_out_what_length_explains() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = (2 ** (1 + 7 * torch.rand(300, 2, generator=generator))).long()
    rewards = tokens.double().log2() + torch.randn(300, 2, generator=generator).double() * 0.1
    knots, slope = calibration.fit_length_trend(rewards, tokens, [str(i) for i in range(300)])
    left = rewards - interpolate(tokens.double().log2(), knots, slope)
    within = left - left.mean(1, keepdim=True)
    assert within.std() < 0.15 < rewards.std()


def test_one_length_needs_no_correction() -> None:
    tokens = torch.full((10, 2), 7)
    knots, slope = calibration.fit_length_trend(torch.randn(10, 2).double(), tokens, list("abcdefghij"))
    assert interpolate(tokens.double().log2(), knots, slope).abs().max() == 0


def test_untangled_directions_are_orthonormal_and_span_the_same() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 20, generator=torch.Generator().manual_seed(0)))
    vectors[1] = torch.nn.functional.normalize(vectors[0] + 0.3 * vectors[1], dim=0)
    untangled = Dictionary(vectors, torch.zeros(8), torch.zeros(8), vectors).orthogonalize().directions
    assert torch.allclose(untangled @ untangled.T, torch.eye(8), atol=1e-5)
    assert torch.linalg.matrix_rank(torch.cat([vectors, untangled]), tol=1e-4) == 8
    assert (untangled * vectors).sum(1).min() > 0.7


def test_explanations_hold_on_orthonormal_directions(engine: Engine) -> None:
    model = engine.models["alpha"]
    flat = RewardModel(
        model.card, model.dictionary.orthogonalize(), model.head, model.calibration, model.features, ()
    )
    residuals = audit.pooled_residuals(engine, "alpha", tiny.random_items(40), quiet)
    found, tangled = (
        faithfulness.evaluate_faithfulness(flat, residuals),
        faithfulness.evaluate_faithfulness(model, residuals),
    )
    assert found["n"] == 40
    assert found["intervention_spearman"] > max(0.7, tangled["intervention_spearman"])
    assert abs(found["shuffled_head_spearman"]) < 0.5
    assert found["near_parallel_directions"] == 0
    assert found["deletion"]["largest"]["10"] > found["deletion"]["random"]["10"]
    assert found["deletion"]["largest"]["0"] == found["insertion"]["largest"]["0"] == 0
    assert found["insertion"]["largest"]["10"] > found["insertion"]["smallest"]["10"]


def test_a_verified_bundle_says_so_in_its_report(workshop: Settings, made_sae: Path) -> None:
    jobs.train_and_save(order(workshop, made_sae, "verified"), made_sae, workshop, quiet)
    folder = workshop.models_dir / "verified"
    pairs = read_pairs(workshop.models_dir.parent / "test.jsonl")[:40]
    found = audit.audit_bundle(folder, pairs, pairs[:10], workshop, quiet)
    assert found["residual"] <= 1e-5
    assert set(found["strangers"]) == {*out_of_distribution.GENERATORS, "all kinds"}
    assert set(found["calibration"]) == {"test", "shifted"}
    assert found["length"]["plain"]["n"] == found["length"]["controlled"]["n"] == 40
    assert json.loads((folder / "report.json").read_text())["verified"] == json.loads(json.dumps(found))
    text = (folder / "report.md").read_text()
    assert "## Can it be trusted?" in text
    assert "because" not in text


def test_doubt_is_measured_on_errors_and_strangers(engine: Engine) -> None:
    scores = [one for (one,) in tiny.score_items(engine, tiny.random_items(40), ScoreOptions(("alpha",)))]
    found = uncertainty.evaluate_error_detection(list(zip(scores[::2], scores[1::2], strict=True)))
    for detector in found.values():
        assert 0 <= detector["auroc"] <= 1
        assert set(detector["accuracy_at_coverage"]) == {"0.1", "0.25", "0.5", "0.75", "1.0"}
    same = uncertainty.evaluate_out_of_distribution_detection(scores, {"none": scores})
    assert same == pytest.approx({"none": 0.5, "all kinds": 0.5})


def test_steering_reports_clusters_by_name(engine: Engine) -> None:
    model = engine.models["alpha"]
    named = tuple(
        replace(feature, label="river" if i in {2, 5} else None) for i, feature in enumerate(model.features)
    )
    model = replace(model, features=named)
    assert model.clusters == {"river": [2, 5]}
    scores = [one for (one,) in tiny.score_items(engine, tiny.random_items(60), ScoreOptions(("alpha",)))]
    (found,) = steering.evaluate_steering(model, *audit.stack_projections(scores))
    assert found["directions"] == 2
    assert found["factor"] in steering.FACTORS


@pytest.mark.parametrize("name", [*paraphrases.RESPONSE_REWRITES, *paraphrases.PROMPT_REWRITES])
def test_transforms_change_the_look_and_keep_the_words(name: str) -> None:
    change = {**paraphrases.RESPONSE_REWRITES, **paraphrases.PROMPT_REWRITES}[name]
    changed = change(TEXT, Random(0))
    assert changed != TEXT
    assert change(TEXT, Random(0)) == changed
    assert len(changed.split()) >= len(TEXT.split()) - 2


@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_attacks_dress_up_the_answer(name: str) -> None:
    attacked = attacks.ATTACKS[name]("What is rain?", "It is milk.", ["clouds", "water"], Random(0))
    assert attacked != "It is milk."
    assert ("It is milk." in attacked) is (name != "empty")
    assert attacked


@pytest.mark.parametrize("kind", list(out_of_distribution.GENERATORS))
def test_strangers_are_never_empty(kind: str) -> None:
    assert all(out_of_distribution.GENERATORS[kind]("What is rain?", Random(seed)) for seed in range(20))


def test_a_stressed_bundle_says_so_in_its_report(workshop: Settings, made_sae: Path) -> None:
    jobs.train_and_save(order(workshop, made_sae, "stressed"), made_sae, workshop, quiet)
    folder = workshop.models_dir / "stressed"
    found = robustness.evaluate_robustness(
        folder, read_pairs(workshop.models_dir.parent / "test.jsonl"), 30, workshop, quiet
    )
    assert found["n"] == 30
    assert set(found["transforms"]) == {*paraphrases.RESPONSE_REWRITES, *paraphrases.PROMPT_REWRITES}
    assert set(found["attacks"]) == set(attacks.ATTACKS)
    assert found["transforms"]["trailing newline"]["flips"] <= 0.2
    assert found["climb"]["gain"][0] == 0
    assert found["climb"]["gain"] == sorted(found["climb"]["gain"])
    assert found["climb"]["gain"][-1] > 0
    assert all(0 <= row["overtakes_unnoticed"] <= row["overtakes"] for row in found["attacks"].values())
    assert found["attacks"]["keyword stuffing"]["psi"] > found["honest_psi"]
    assert "## Under pressure" in (folder / "report.md").read_text()
