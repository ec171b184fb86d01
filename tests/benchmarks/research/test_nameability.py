"""The sheet and the quiz show texts of different prompts that do and do not express a feature."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train import jobs
from app.train.features import extract_features
from app.train.selection import LatentSource
from benchmarks.research import nameability
from tests.support.training_setup import ignore_progress
from tests.train.test_steps import NAME, response_config

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model_settings(training_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a folder with a small trained model."""
    settings = training_settings.model_copy(update={"models_dir": tmp_path_factory.mktemp("named")})
    config, source = response_config(training_settings)
    jobs.train_and_save(config, source, settings, ignore_progress)
    return settings


def test_a_name_is_tested_on_other_prompts_than_it_was_written_from(
    model_settings: Settings, training_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models_dir", "cache_dir", "device", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(model_settings, name)))
    pairs = training_settings.models_dir.parent / "pairs.jsonl"
    files = {name: tmp_path / f"{name}.jsonl" for name in ("sheet", "quiz", "key")}
    nameability.sheet(NAME, str(pairs), files["sheet"])
    rows = [json.loads(line) for line in files["sheet"].read_text().splitlines()]
    assert 8 < len(rows) <= 16
    named = [{**row, "name": f"name {row['feature']}"} for row in rows]
    files["sheet"].write_text("".join(json.dumps(row) + "\n" for row in named))
    nameability.quiz(NAME, str(pairs), files["sheet"], files["quiz"], files["key"])
    questions, answers = (
        [json.loads(line) for line in files[name].read_text().splitlines()] for name in ("quiz", "key")
    )
    evidence = {text["prompt"] for row in rows for text in row["expresses"] + row["does_not"]}
    assert not evidence & {text["prompt"] for row in questions for text in row["texts"]}
    model = bundle.load_bundle(model_settings.models_dir / NAME)
    for question, answer in zip(questions, answers, strict=True):
        assert question["name"] == f"name {question['feature']}"
        assert len(question["texts"]) == len(answer["fits"])
        assert sum(answer["fits"]) * 2 == len(answer["fits"])
        assert "fits" in question
        assert question["fits"] == []
    assert_answers_are_right(model_settings, training_settings, model, questions, answers)


def assert_answers_are_right(
    settings: Settings, training_settings: Settings, model: RewardModel, questions: Rows, answers: Rows
) -> None:
    """Compute the activations of the quiz's responses again and compare them with its key."""
    config, source = response_config(training_settings)
    extractor = jobs.load_feature_extractor(source, settings, ignore_progress)
    items = {item.response: item for pair in config.pairs for item in pair.items}
    for question, answer in zip(questions, answers, strict=True):
        rows = [(items[text["response"]],) for text in question["texts"]]
        features = extract_features(rows, extractor, settings.cache, ignore_progress)
        source_of_latents = LatentSource(
            model.dictionary, model.card.sae_input, model.card.layer, model.card.readout
        )
        fired = source_of_latents.activations(features)[:, 0, question["feature"]] > 0
        assert torch.equal(fired, torch.tensor(answer["fits"]))


def test_balanced_accuracy_weighs_both_kinds_of_texts_alike() -> None:
    right = [True, True, True, False]
    assert nameability.balanced_accuracy(right, right) == 1.0
    assert nameability.balanced_accuracy([True] * 4, right) == 0.5
    assert nameability.balanced_accuracy([True, False, False, False], right) == pytest.approx(2 / 3)
