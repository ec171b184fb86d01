"""Blind tests on disk: names that pass go into the bundle, others are removed, the report has all scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import DataError
from app.evaluate import report
from app.reward import bundle, loading
from app.reward.reward_model import Concept, RewardModel
from app.settings import Settings
from app.train.names import jobs, results
from app.train.names.blind_test import NameScore
from app.train.names.evidence import evidence_folder
from tests.support import named_models
from tests.support.training_setup import ignore_progress

Rows = list[dict[str, Any]]


def write_test(settings: Settings, model: RewardModel, out: Path) -> tuple[dict[int, str], Concept, Rows]:
    """Write a test of three names and a concept; return them and the questions."""
    raising = [feature for feature in model.features if feature.sign > 0][:3]
    names = {feature.latent: f"says amber {feature.latent}" for feature in raising}
    concept = Concept("says amber", tuple(names), 1, "Says the word amber.")
    folder = evidence_folder(settings.cache, named_models.NAME)
    results.write_test(model, folder, names, [concept], out, items=20, round_number=0)
    return names, concept, [json.loads(line) for line in out.read_text().splitlines()]


def answer(settings: Settings, questions: Rows, *, wrong: set[str]) -> Rows:
    """Fill in the right answers, and the opposite for some keys."""
    folder = evidence_folder(settings.cache, named_models.NAME)
    key = json.loads((folder / f"answers-{questions[0]['test']}.json").read_text())
    return [
        {**row, "fits": [fits != (row["key"] in wrong) for fits in key["answers"][row["key"]]]}
        for row in questions
    ]


def test_what_passes_is_written_and_what_fails_is_removed(
    named_settings: Settings, named_model: RewardModel, tmp_path: Path
) -> None:
    names, concept, questions = write_test(named_settings, named_model, tmp_path / "test.jsonl")
    enough = {row["key"] for row in questions}
    assert concept.name in enough
    assert all(len(row["texts"]) == 20 for row in questions)
    assert not any(fits for row in questions for fits in row["fits"])
    answered = answer(named_settings, questions, wrong=set())
    (tmp_path / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    scored = jobs.score_names(named_models.NAME, [tmp_path / "answered.jsonl"], named_settings)
    assert {tested.key for tested in scored} == enough
    model = named_models.load_model(named_settings)
    labels = {f.latent: (f.label, f.label_score) for f in model.features if f.label_items}
    assert labels == {latent: (name, 1.0) for latent, name in names.items() if str(latent) in enough}
    [kept] = model.concepts
    assert (kept.name, kept.score, kept.items, set(kept.latents)) == ("says amber", 1.0, 20, set(names))
    engine = loading.load_engine(
        named_settings.model_copy(update={"models": named_models.NAME}), ignore_progress
    )
    engine.verify()
    named = report.read(named_settings.models_dir / named_models.NAME)["named"]
    assert {row["key"] for row in named["names"] if row["passed"]} == enough
    wrong = answer(named_settings, questions, wrong={concept.name, *map(str, names)})
    jobs.save_scores(named_models.NAME, wrong, named_settings)
    model = named_models.load_model(named_settings)
    assert not any(feature.label_items for feature in model.features)
    assert model.concepts == ()
    with pytest.raises(DataError, match="exists; move it away"):
        write_test(named_settings, named_model, tmp_path / "test.jsonl")


def test_concepts_that_were_not_tested_again_are_kept(named_model: RewardModel) -> None:
    latents = [feature.latent for feature in named_model.features if feature.sign > 0]
    first, second = Concept("a", tuple(latents[:1]), 1), Concept("b", tuple(latents[1:2]), 1)
    good = NameScore(0.9, 0.7, 20)
    model = results.apply_scores(named_model, {}, [first], {"a": good})
    model = results.apply_scores(model, {}, [second], {"b": good})
    assert [concept.name for concept in model.concepts] == ["a", "b"]
    regrouped = Concept("c", tuple(latents[:2]), 1)
    model = results.apply_scores(model, {}, [regrouped], {"c": good})
    assert [concept.name for concept in model.concepts] == ["c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("[1", "not JSON"), ("[]", "must be an object"), ('{"key": "1"}', "needs the `test`")],
)
def test_files_of_answers_are_checked(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        results.read_answers([file])


@pytest.mark.parametrize("quiz", ["0123abcd", "../../etc/passwd"])
def test_unknown_tests_are_refused(named_settings: Settings, named_model: RewardModel, quiz: str) -> None:
    folder = evidence_folder(named_settings.cache, named_models.NAME)
    with pytest.raises(DataError, match="test"):
        results.score_test(named_model, folder, [{"test": quiz, "key": "1", "fits": []}])


def test_a_bundle_without_its_concepts_file_does_not_load(named_model: RewardModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    bundle.save_bundle(named_model, folder)
    latents = [feature.latent for feature in named_model.features if feature.sign > 0]
    concept = Concept("a", tuple(latents), 1)
    named = results.apply_scores(named_model, {}, [concept], {"a": NameScore(0.9, 0.7, 20)})
    bundle.save_names(named, folder)
    assert bundle.load_bundle(folder).concepts == named.concepts
    (folder / "concepts.json").unlink()
    with pytest.raises(Exception, match=r"concepts\.json is missing"):
        bundle.load_bundle(folder)
    bundle.save_bundle(named_model, folder)
    assert bundle.load_bundle(folder).concepts == ()
    (folder / "concepts.json").write_text("[]")
    with pytest.raises(Exception, match=r"concepts\.json has sha256"):
        bundle.load_bundle(folder)
