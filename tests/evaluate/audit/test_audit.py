"""The audit on tiny real models: length control, spans, uncertainty, robustness and steering."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from app.backbone.packing import pack
from app.data.pairs import read_pairs
from app.evaluate.audit import (
    attacks,
    audit,
    out_of_distribution,
    paraphrases,
    robustness,
    steering,
    uncertainty,
)
from app.reward.calibration import interpolate
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.reward.pooling import pooled_span
from app.settings import Settings
from app.train import jobs
from app.train.head import calibration
from app.types import Explain, Pair, ScoreOptions
from tests.support import tiny
from tests.support.training_setup import ignore_progress, training_config

TEXT = "It's true that cats don't like water. Some \"brave\" ones swim, and color does not matter! Try it."


def test_length_control_is_exact_and_optional(engine: Engine) -> None:
    items = tiny.random_items(12)
    plain, controlled = (
        tiny.score_items(
            engine, items, ScoreOptions(("alpha",), Explain.TOKENS, top_k=tiny.K, length_control=on)
        )
        for on in (False, True)
    )
    any_correction = False
    for (before,), (after,) in zip(plain, controlled, strict=True):
        assert before.length_correction == 0
        assert after.reward == pytest.approx(before.reward + after.length_correction, abs=1e-9)
        total = after.baseline + sum(f.contribution for f in after.features) + after.length_correction
        assert total + after.residual == pytest.approx(after.reward, abs=1e-9)
        assert abs(after.residual) <= 1e-5
        assert after.tokens
        credited = after.baseline + sum(t.credit for t in after.tokens) + after.length_correction
        assert credited == pytest.approx(after.reward, abs=1e-5)
        any_correction |= after.length_correction != 0
    assert any_correction


def test_length_control_removes_the_effect_of_length() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = (2 ** (1 + 7 * torch.rand(300, 2, generator=generator))).long()
    rewards = tokens.double().log2() + torch.randn(300, 2, generator=generator).double() * 0.1
    knots, slope = calibration.fit_length_trend(rewards, tokens, [str(i) for i in range(300)])
    residuals = rewards - interpolate(tokens.double().log2(), knots, slope)
    within = residuals - residuals.mean(1, keepdim=True)
    assert within.std() < 0.15 < rewards.std()


def test_responses_of_equal_length_need_no_correction() -> None:
    tokens = torch.full((10, 2), 7)
    knots, slope = calibration.fit_length_trend(torch.randn(10, 2).double(), tokens, list("abcdefghij"))
    assert interpolate(tokens.double().log2(), knots, slope).abs().max() == 0


def test_orthogonalized_directions_are_orthonormal_and_span_the_same_space() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 20, generator=torch.Generator().manual_seed(0)))
    vectors[1] = torch.nn.functional.normalize(vectors[0] + 0.3 * vectors[1], dim=0)
    untangled = Dictionary(vectors, torch.zeros(8), torch.zeros(8), vectors).orthogonalize().directions
    assert torch.allclose(untangled @ untangled.T, torch.eye(8), atol=1e-5)
    assert torch.linalg.matrix_rank(torch.cat([vectors, untangled]), tol=1e-4) == 8
    assert (untangled * vectors).sum(1).min() > 0.7


def test_an_audit_is_added_to_the_report(training_settings: Settings, trained_sae: Path) -> None:
    jobs.train_and_save(
        training_config(training_settings, trained_sae, "verified"),
        trained_sae,
        training_settings,
        ignore_progress,
    )
    folder = training_settings.models_dir / "verified"
    pairs = read_pairs(training_settings.models_dir.parent / "test.jsonl")[:40]
    results = audit.audit_bundle(folder, pairs, pairs[:10], training_settings, ignore_progress)
    assert results["residual"] <= 1e-5
    assert set(results["strangers"]) == {*out_of_distribution.GENERATORS, "all kinds"}
    assert set(results["calibration"]) == {"test", "shifted"}
    assert results["length"]["plain"]["n"] == results["length"]["controlled"]["n"] == 40
    assert results["explanations"]["n"] == min(80, audit.MAX_EXPLAINED_RESPONSES)
    assert results["contrasts"]["n"] > 0
    assert json.loads((folder / "report.json").read_text())["verified"] == json.loads(json.dumps(results))
    text = (folder / "report.md").read_text()
    assert "## Explanations, uncertainty and control" in text
    assert "because" not in text


def test_a_model_that_reads_passages_is_audited_by_its_spans(settings: Settings, tmp_path: Path) -> None:
    folder = shutil.copytree(settings.models_dir / "delta", tmp_path / "delta")
    items = tiny.random_items(40)
    pairs = [
        Pair(item.messages, item.response, other.response, group=str(index))
        for index, (item, other) in enumerate(zip(items[::2], items[1::2], strict=True))
    ]
    results = audit.audit_bundle(folder, pairs, [], settings, ignore_progress)
    assert results["residual"] <= 1e-5
    assert results["explanations"]["n"] > 20
    assert results["contrasts"]["n"] <= 20
    assert "| explanations | value |" in (folder / "report.md").read_text()


@pytest.mark.parametrize("name", ["alpha", "beta", "delta"])
def test_the_spans_of_a_model_are_pooled_response_by_response(engine: Engine, name: str) -> None:
    card = engine.models[name].card
    items = [*tiny.random_items(6), tiny.make_item("a question", "x"), *tiny.random_items(6, seed=1)]
    spans, residuals = audit.pool_spans(engine, name, items, ignore_progress)
    assert spans.num_responses == len(items)
    assert len(spans.starts) == len(residuals)
    assert (len(residuals) > len(items)) == (card.passages is not None)
    for index, item in enumerate(engine.encode(items)):
        packed = pack([item.ids])
        start, end = pooled_span(card.readout, item.response_turn)
        rows = tiny.compute_residuals(engine.backbone, packed, card.layer)[start:end]
        first = spans.starts[index]
        for k in (spans.response_index == index).nonzero().flatten().tolist():
            expected = rows[spans.starts[k] - first : spans.ends[k] - first].mean(0)
            assert torch.allclose(residuals[k], expected, atol=1e-5)


def test_uncertainty_is_measured_on_errors_and_out_of_distribution_responses(engine: Engine) -> None:
    scores = [score for (score,) in tiny.score_items(engine, tiny.random_items(40), ScoreOptions(("alpha",)))]
    results = uncertainty.evaluate_error_detection(list(zip(scores[::2], scores[1::2], strict=True)))
    for row in results.values():
        assert 0 <= row["auroc"] <= 1
        assert set(row["accuracy_at_coverage"]) == {"0.1", "0.25", "0.5", "0.75", "1.0"}
    aurocs = uncertainty.evaluate_out_of_distribution_detection(scores, {"none": scores})
    assert aurocs == pytest.approx({"none": 0.5, "all kinds": 0.5})


def test_steering_reports_concepts_by_name(engine: Engine) -> None:
    model = engine.models["alpha"]
    named = tuple(
        replace(feature, label="river" if i in {2, 5} else None) for i, feature in enumerate(model.features)
    )
    model = replace(model, features=named)
    assert model.concept_indices == {"river": [2, 5]}
    scores = [score for (score,) in tiny.score_items(engine, tiny.random_items(60), ScoreOptions(("alpha",)))]
    (row,) = steering.evaluate_steering(model, *audit.stack_projections(scores))
    assert row["directions"] == 2
    assert row["factor"] in steering.FACTORS


@pytest.mark.parametrize("name", [*paraphrases.RESPONSE_REWRITES, *paraphrases.PROMPT_REWRITES])
def test_rewrites_change_the_text_and_keep_the_words(name: str) -> None:
    rewrite = {**paraphrases.RESPONSE_REWRITES, **paraphrases.PROMPT_REWRITES}[name]
    changed = rewrite(TEXT, Random(0))
    assert changed != TEXT
    assert rewrite(TEXT, Random(0)) == changed
    assert len(changed.split()) >= len(TEXT.split()) - 2


@pytest.mark.parametrize("kind", list(out_of_distribution.GENERATORS))
def test_out_of_distribution_responses_are_never_empty(kind: str) -> None:
    assert all(out_of_distribution.GENERATORS[kind]("What is rain?", Random(seed)) for seed in range(20))


def test_robustness_is_added_to_the_report(training_settings: Settings, trained_sae: Path) -> None:
    jobs.train_and_save(
        training_config(training_settings, trained_sae, "stressed"),
        trained_sae,
        training_settings,
        ignore_progress,
    )
    folder = training_settings.models_dir / "stressed"
    results = robustness.evaluate_robustness(
        folder,
        read_pairs(training_settings.models_dir.parent / "test.jsonl"),
        30,
        training_settings,
        ignore_progress,
    )
    assert results["n"] == 30
    assert set(results["transforms"]) == {*paraphrases.RESPONSE_REWRITES, *paraphrases.PROMPT_REWRITES}
    assert set(results["attacks"]) == set(attacks.ATTACKS)
    assert results["transforms"]["trailing newline"]["flips"] <= 0.2
    assert results["climb"]["gain"][0] == 0
    assert results["climb"]["gain"] == sorted(results["climb"]["gain"])
    assert results["climb"]["gain"][-1] > 0
    assert all(0 <= row["overtakes_unnoticed"] <= row["overtakes"] for row in results["attacks"].values())
    assert results["attacks"]["keyword stuffing"]["psi"] > results["honest_psi"]
    report = (folder / "report.md").read_text()
    assert "## Robustness" in report
    assert all(f"\n| {name} | " in report for name in attacks.ATTACKS)
