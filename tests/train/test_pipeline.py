"""Training end to end on the tiny backbone: pairs → bundle → served rewards."""

import dataclasses
import json
from pathlib import Path
from random import Random

import pytest
import torch

from app.backbone.packing import pack
from app.data.pairs import read_pairs
from app.errors import DataError, SourceError
from app.evaluate import accuracy_run
from app.evaluate.audit.attacks import ATTACKS
from app.reward import bundle, loading
from app.reward.pooling import pooled_span
from app.settings import Settings
from app.train import augmentation, features, head_training, jobs, pipeline, variants
from app.train.names import contexts, labels
from app.train.names.concepts import find_keywords
from app.train.selection import select_latents
from app.types import MIN_AGREEMENT, Pooling, ScoreOptions
from tests.support import tiny
from tests.support.training_setup import Killed, killing, order, quiet


def test_a_trained_bundle_is_served_and_has_learnt(training_settings: Settings, trained_sae: Path) -> None:
    model = jobs.train_and_save(
        order(training_settings, trained_sae, "amber", tested=True), trained_sae, training_settings, quiet
    )
    folder = training_settings.models_dir / "amber"
    found = json.loads((folder / "report.json").read_text())
    assert found["test"]["accuracy"] == model.card.metrics["accuracy"] > 0.9
    assert found["test"]["n"] == 100
    assert set(found["baselines"]) == set(variants.BASELINES)
    told = (folder / "report.md").read_text()
    assert "**SparseRM**" in told
    assert f"{found['sae']['quality']['l0_response']:.0f} latents active at a response token" in told
    assert {"calibration.png", "length.png"} <= {file.name for file in folder.iterdir()}
    engine = loading.load_engine(training_settings, quiet)
    engine.verify()
    liked, other = (
        tiny.make_item("river 1?", text) for text in ("seven amber amber maple", "seven maple glass")
    )
    (better,), (worse,) = tiny.score_items(engine, [liked, other], ScoreOptions(("amber",)))
    assert better.reward > worse.reward
    tested = read_pairs(training_settings.models_dir.parent / "test.jsonl")
    served = accuracy_run.evaluate_bundle(folder, tested, (), training_settings, quiet)
    assert served["accuracy"] == pytest.approx(found["test"]["accuracy"], abs=0.011)


def test_a_new_bundle_is_not_told_by_what_was_measured_of_the_old(
    training_settings: Settings, trained_sae: Path
) -> None:
    folder = training_settings.models_dir / "renewed"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"verified": {"largest_residual": 7}}))
    (folder / "directions.png").touch()
    jobs.train_and_save(
        order(training_settings, trained_sae, "renewed"), trained_sae, training_settings, quiet
    )
    assert "verified" not in json.loads((folder / "report.json").read_text())
    assert not (folder / "directions.png").exists()


def test_training_again_gives_the_same_bundle(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    twice = order(training_settings, trained_sae, "twice", readout=Pooling.END, seed=3)
    sums = []
    for _ in range(2):
        jobs.train_and_save(twice, trained_sae, training_settings, quiet)
        sums.append((training_settings.models_dir / "twice" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]
    (training_settings.models_dir / "twice").rename(tmp_path / "twice")


def test_data_for_research_says_so(training_settings: Settings, trained_sae: Path) -> None:
    what = order(training_settings, trained_sae, "nc", terms="CC BY-NC 4.0", limit=50)
    made = pipeline.train(
        what,
        jobs.load_feature_extractor(trained_sae, training_settings, quiet),
        training_settings.cache,
        quiet,
    )
    assert made.model.card.use == "research use only"
    assert made.model.card.data[0].pairs == made.findings["training"]["pairs"] == 50


def test_an_sae_of_another_backbone_is_refused(training_settings: Settings, trained_sae: Path) -> None:
    note = json.loads((trained_sae / "provenance.json").read_text())
    other = training_settings.models_dir.parent / "other-sae"
    other.mkdir()
    (other / "provenance.json").write_text(json.dumps({**note, "backbone_digest": "sha256:0"}))
    with pytest.raises(SourceError, match="was trained on sha256:0"):
        jobs.train_and_save(order(training_settings, other, "x"), other, training_settings, quiet)


def test_too_few_prompts_are_refused(training_settings: Settings, trained_sae: Path) -> None:
    what = order(training_settings, trained_sae, "few")
    with pytest.raises(DataError, match="cross-validation needs more"):
        pipeline.take_training_pairs(dataclasses.replace(what, pairs=what.pairs[:2]))


@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_killed_training_ends_in_the_same_bundle(
    training_settings: Settings,
    trained_sae: Path,
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "PASS_TOKENS", 512)
    what = order(training_settings, trained_sae, "cut", tested=True)
    sums = []
    for name, report in (("straight", quiet), ("broken", killing(after)), ("broken", quiet)):
        here = training_settings.model_copy(
            update={"cache_dir": tmp_path / name, "models_dir": tmp_path / name}
        )
        try:
            jobs.train_and_save(what, trained_sae, here, report)
        except Killed:
            assert name == "broken"
            continue
        sums.append((tmp_path / name / "cut" / "SHA256SUMS").read_text())
    assert len(sums) == 2
    assert sums[0] == sums[1]


def test_features_are_kept_and_shared_between_runs(
    training_settings: Settings, trained_sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = jobs.load_feature_extractor(trained_sae, training_settings, quiet)
    pairs = order(training_settings, trained_sae, "x").pairs[:40]
    first = features.extract_features([pair.items for pair in pairs], reader, tmp_path, quiet)
    monkeypatch.setattr(type(reader.backbone), "residuals", killing(0))
    again = features.extract_features([pair.items for pair in pairs[:30]], reader, tmp_path, quiet)
    for readout in Pooling:
        assert torch.equal(first.pooled_residuals(3, readout)[:30], again.pooled_residuals(3, readout))
        assert torch.equal(first.firing_rates(readout)[:30], again.firing_rates(readout))
        assert torch.equal(first.mean_activations(readout)[:30], again.mean_activations(readout))


def test_features_are_what_the_engine_reads(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    reader = jobs.load_feature_extractor(trained_sae, training_settings, quiet)
    pair = order(training_settings, trained_sae, "x").pairs[0]
    table = features.extract_features([pair.items], reader, tmp_path, quiet)
    chosen, _ = reader.text.encode(pair.items)
    packed = pack([chosen.ids])
    rows = tiny.compute_residuals(reader.backbone, packed, 3)
    for readout in Pooling:
        start, stop = pooled_span(readout, chosen)
        latents = reader.dictionary.encode(rows[start:stop])
        assert torch.allclose(table.pooled_residuals(3, readout)[0, 0], rows[start:stop].mean(0), atol=1e-5)
        assert torch.allclose(
            table.firing_rates(readout)[0, 0].float(), (latents > 0).float().mean(0), atol=1e-3
        )
        assert torch.allclose(table.mean_activations(readout)[0, 0].float(), latents.mean(0), atol=1e-2)


def test_selection_takes_the_largest_differences_and_knows_how_sure_it_is() -> None:
    random = torch.Generator().manual_seed(0)
    firing = (torch.rand(300, 2, 40, generator=random) < 0.3).float()
    firing[:, 0, 2], firing[:, 1, 4] = 1, 1
    groups = [str(i) for i in range(300)]
    clear = select_latents(firing, groups, 1)
    assert clear.latents.tolist() == [2, 4]
    assert clear.signs.tolist() == [1, -1]
    assert clear.false_discovery == 0
    assert clear.overlap == 1
    assert clear.stability.tolist() == [1, 1]
    greedy = select_latents(firing, groups, 10)
    assert greedy.false_discovery > 0.5
    assert greedy.overlap < 0.8


def test_a_name_must_tell_when_its_latent_fires(training_settings: Settings, trained_sae: Path) -> None:
    reader = jobs.load_feature_extractor(trained_sae, training_settings, quiet)
    made = pipeline.train(
        order(training_settings, trained_sae, "named"), reader, training_settings.cache, quiet
    )
    read = contexts.collect_contexts(
        order(training_settings, trained_sae, "named").pairs, reader, training_settings.cache, quiet
    )
    amber = reader.text.decode(read.ids.tolist())
    assert any("amber" in word for word in amber)
    named = [feature for feature in made.model.features if feature.label]
    assert named
    for feature in made.model.features:
        assert (feature.label is None) == (feature.label_score is None)
        if feature.label_score is not None:
            assert feature.label_score >= labels.MIN_LABEL_SCORE
            assert (feature.agreement or 0) >= MIN_AGREEMENT
            assert feature.keywords == find_keywords(feature.label or "")


def test_a_label_s_keywords_are_the_words_it_stands_for() -> None:
    assert {"no", "never", "nor"} <= set(find_keywords("after negation"))
    assert find_keywords("before “it” “is”") == ("it", "is")
    assert find_keywords("full stop") == find_keywords("the start of the response") == ()


@pytest.mark.parametrize("loss", list(head_training.LOSSES))
def test_every_head_learns_and_is_standardised(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 8, generator=generator) * 3 + 5
    x[:, 0, 0] += 6
    groups = [str(i) for i in range(200)]
    lesson = head_training.TrainingSet.from_vectors(x, torch.eye(8), groups)
    head = head_training.fit_head(
        lesson, head_training.HeadTrainingConfig(heads=4, hidden=16, loss=loss, epochs=100, lr=5e-3), quiet
    )
    rewards = head.score_members(head.standardise(x.flatten(0, 1)))
    assert torch.allclose(rewards.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(rewards.std(0), torch.ones(4, dtype=torch.float64), atol=1e-2)
    assert (rewards.reshape(200, 2, 4)[:, 0] > rewards.reshape(200, 2, 4)[:, 1]).double().mean() > 0.8
    assert not torch.equal(head.w1[0], head.w1[1])


def test_bundles_found_by_name(training_settings: Settings) -> None:
    assert "sae" not in bundle.list_bundles(training_settings.models_dir)


def test_drills_teach_not_to_pay_for_a_dress() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(300, 2, 6, generator=generator)
    honest[:, 0, :2] += 1.0
    dressed = honest.clone()
    dressed[:, 1, 1] += 4.0
    groups = [str(i) for i in range(300)]
    plain = head_training.TrainingSet.from_vectors(honest, torch.eye(6), groups)
    drilled = plain.with_augmented(dressed[:150], groups[:150])
    plan = head_training.HeadTrainingConfig(heads=4, hidden=16, epochs=60, lr=3e-3, dropout=0.2)
    overtaken = []
    for lesson in (plain, drilled):
        head = head_training.fit_head(lesson, plan, quiet)
        rewards = head.score_members(head.standardise(honest.flatten(0, 1)))
        assert torch.allclose(rewards.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
        assert torch.allclose(rewards.std(0), torch.ones(4, dtype=torch.float64), atol=1e-2)
        unseen = head_training.compute_rewards(head, dressed[150:])
        overtaken.append(float((unseen[:, 1] > unseen[:, 0]).double().mean()))
    assert overtaken[0] > 0.8
    assert overtaken[1] < 0.4


def test_a_drill_depends_on_its_pair_alone(training_settings: Settings, trained_sae: Path) -> None:
    pairs = order(training_settings, trained_sae, "x").pairs
    every = augmentation.augment_rejected(pairs, 1.0)
    assert [i for i, _ in every] == list(range(len(pairs)))
    assert augmentation.augment_rejected(pairs[5:], 1.0) == [
        (i - 5, exchange) for i, exchange in every if i >= 5
    ]
    half = augmentation.augment_rejected(pairs, 0.5)
    assert set(half) < set(every)
    assert 0.3 < len(half) / len(every) < 0.7
    assert augmentation.augment_rejected(pairs, 0.0) == []


def test_drills_are_not_what_the_stress_suite_attacks_with() -> None:
    taught = {
        *augmentation.FILLER_SENTENCES,
        *augmentation.COMPLIMENTS,
        *augmentation.SELF_GRADES,
        *augmentation.INJECTED_INSTRUCTIONS,
        *augmentation.REFUSALS,
        *augmentation.LAYOUTS,
    }
    rng = Random(0)
    for attack in ATTACKS.values():
        assert not any(text in attack("why?", "so.", ("a",), rng) for text in taught)
    for dress in augmentation.AUGMENTATIONS:
        assert dress("why?", "so.", ("a",), rng) != "so."
