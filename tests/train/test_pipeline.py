"""Training on the tiny backbone, from pairs to a bundle that is served; the steps of the pipeline."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from app.backbone.packing import pack
from app.data.pairs import read_pairs
from app.errors import DataError, SourceError
from app.evaluate import accuracy_run
from app.reward import bundle, loading
from app.reward.pooling import pooled_span
from app.settings import Settings
from app.train import features, jobs, pipeline
from app.train.head.baselines import BASELINES
from app.train.head.common import compute_rewards
from app.train.head.losses import LOSSES
from app.train.head.network import NetworkHeadConfig, fit_network
from app.train.head.training_set import TrainingSet
from app.train.names.tokens import automatic, contexts
from app.train.names.tokens.categories import find_keywords
from app.train.selection import select_latents
from app.types import MIN_AGREEMENT, Pooling, ScoreOptions
from tests.support import tiny
from tests.support.training_setup import Killed, ignore_progress, kill_after, training_config


def test_a_trained_bundle_ranks_pairs_and_is_served(training_settings: Settings, trained_sae: Path) -> None:
    model = jobs.train_and_save(
        training_config(training_settings, trained_sae, "amber", with_test=True),
        trained_sae,
        training_settings,
        ignore_progress,
    )
    folder = training_settings.models_dir / "amber"
    results = json.loads((folder / "report.json").read_text())
    assert results["test"]["accuracy"] == model.card.metrics["accuracy"] > 0.9
    assert results["test"]["n"] == 100
    assert set(results["baselines"]) == set(BASELINES)
    report = (folder / "report.md").read_text()
    assert "**SparseRM**" in report
    assert f"{results['sae']['quality']['l0_response']:.0f} latents active at a response token" in report
    assert {"calibration.png", "length.png"} <= {file.name for file in folder.iterdir()}
    engine = loading.load_engine(training_settings, ignore_progress)
    engine.verify()
    preferred, other = (
        tiny.make_item("river 1?", text) for text in ("seven amber amber maple", "seven maple glass")
    )
    (better,), (worse,) = tiny.score_items(engine, [preferred, other], ScoreOptions(("amber",)))
    assert better.reward > worse.reward
    test_pairs = read_pairs(training_settings.models_dir.parent / "test.jsonl")
    served = accuracy_run.evaluate_bundle(folder, test_pairs, (), training_settings, ignore_progress)
    assert served["accuracy"] == pytest.approx(results["test"]["accuracy"], abs=0.011)


def test_training_again_removes_the_old_measurements_from_the_report(
    training_settings: Settings, trained_sae: Path
) -> None:
    folder = training_settings.models_dir / "renewed"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"verified": {"largest_residual": 7}}))
    (folder / "directions.png").touch()
    jobs.train_and_save(
        training_config(training_settings, trained_sae, "renewed"),
        trained_sae,
        training_settings,
        ignore_progress,
    )
    assert "verified" not in json.loads((folder / "report.json").read_text())
    assert not (folder / "directions.png").exists()


def test_training_again_gives_the_same_bundle(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    config = training_config(training_settings, trained_sae, "twice", pooling=Pooling.END, seed=3)
    checksums = []
    for _ in range(2):
        jobs.train_and_save(config, trained_sae, training_settings, ignore_progress)
        checksums.append((training_settings.models_dir / "twice" / "SHA256SUMS").read_text())
    assert checksums[0] == checksums[1]
    (training_settings.models_dir / "twice").rename(tmp_path / "twice")


def test_a_non_commercial_license_restricts_the_use_of_the_model(
    training_settings: Settings, trained_sae: Path
) -> None:
    config = training_config(training_settings, trained_sae, "nc", data_license="CC BY-NC 4.0", max_pairs=50)
    result = pipeline.train(
        config,
        jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress),
        training_settings.cache,
        ignore_progress,
    )
    assert result.model.card.use == "research use only"
    assert result.model.card.data[0].pairs == result.results["training"]["pairs"] == 50


def test_rejects_an_sae_of_another_backbone(training_settings: Settings, trained_sae: Path) -> None:
    provenance = json.loads((trained_sae / "provenance.json").read_text())
    other = training_settings.models_dir.parent / "other-sae"
    other.mkdir()
    (other / "provenance.json").write_text(json.dumps({**provenance, "backbone_digest": "sha256:0"}))
    with pytest.raises(SourceError, match="was trained on sha256:0"):
        jobs.train_and_save(
            training_config(training_settings, other, "x"), other, training_settings, ignore_progress
        )


def test_rejects_too_few_prompts(training_settings: Settings, trained_sae: Path) -> None:
    config = training_config(training_settings, trained_sae, "few")
    with pytest.raises(DataError, match="cross-validation needs more"):
        pipeline.take_training_pairs(dataclasses.replace(config, pairs=config.pairs[:2]))


@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_interrupted_training_ends_in_the_same_bundle(
    training_settings: Settings,
    trained_sae: Path,
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "MAX_BATCH_TOKENS", 512)
    config = training_config(training_settings, trained_sae, "cut", with_test=True)
    checksums = []
    for name, progress in (
        ("uninterrupted", ignore_progress),
        ("interrupted", kill_after(after)),
        ("interrupted", ignore_progress),
    ):
        settings = training_settings.model_copy(
            update={"cache_dir": tmp_path / name, "models_dir": tmp_path / name}
        )
        try:
            jobs.train_and_save(config, trained_sae, settings, progress)
        except Killed:
            assert name == "interrupted"
            continue
        checksums.append((tmp_path / name / "cut" / "SHA256SUMS").read_text())
    assert len(checksums) == 2
    assert checksums[0] == checksums[1]


def test_features_are_cached_and_shared_between_runs(
    training_settings: Settings, trained_sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    pairs = training_config(training_settings, trained_sae, "x").pairs[:40]
    first = features.extract_features([pair.items for pair in pairs], extractor, tmp_path, ignore_progress)
    monkeypatch.setattr(type(extractor.backbone), "residuals", kill_after(0))
    again = features.extract_features(
        [pair.items for pair in pairs[:30]], extractor, tmp_path, ignore_progress
    )
    for pooling in Pooling:
        assert torch.equal(first.pooled_residuals(3, pooling)[:30], again.pooled_residuals(3, pooling))
        assert torch.equal(first.firing_rates(pooling)[:30], again.firing_rates(pooling))
        assert torch.equal(first.mean_activations(pooling)[:30], again.mean_activations(pooling))


def test_features_equal_those_of_the_engine(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    assert extractor.dictionary
    pair = training_config(training_settings, trained_sae, "x").pairs[0]
    extracted = features.extract_features([pair.items], extractor, tmp_path, ignore_progress)
    chosen, _ = extractor.tokenizer.encode(pair.items)
    packed = pack([chosen.ids])
    rows = tiny.compute_residuals(extractor.backbone, packed, 3)
    for pooling in Pooling:
        start, stop = pooled_span(pooling, chosen.response_turn)
        latents = extractor.dictionary.encode(rows[start:stop])
        assert torch.allclose(
            extracted.pooled_residuals(3, pooling)[0, 0], rows[start:stop].mean(0), atol=1e-5
        )
        assert torch.allclose(
            extracted.firing_rates(pooling)[0, 0].float(), (latents > 0).float().mean(0), atol=1e-3
        )
        assert torch.allclose(extracted.mean_activations(pooling)[0, 0].float(), latents.mean(0), atol=1e-2)


def test_selection_takes_the_largest_differences_and_measures_its_reliability() -> None:
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


def test_a_feature_is_named_only_if_the_name_predicts_its_firing(
    training_settings: Settings, trained_sae: Path
) -> None:
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    result = pipeline.train(
        training_config(training_settings, trained_sae, "named"),
        extractor,
        training_settings.cache,
        ignore_progress,
    )
    tokens = contexts.collect_contexts(
        training_config(training_settings, trained_sae, "named").pairs,
        extractor,
        training_settings.cache,
        ignore_progress,
    )
    texts = extractor.tokenizer.decode(tokens.ids.tolist())
    assert any("amber" in text for text in texts)
    named = [feature for feature in result.model.features if feature.label]
    assert named
    for feature in result.model.features:
        assert (feature.label is None) == (feature.label_score is None)
        if feature.label_score is not None:
            assert feature.label_score >= automatic.MIN_LABEL_SCORE
            assert (feature.agreement or 0) >= MIN_AGREEMENT
            assert feature.keywords == find_keywords(feature.label or "")


def test_keywords_are_the_words_that_a_label_summarises() -> None:
    assert {"no", "never", "nor"} <= set(find_keywords("after negation"))
    assert find_keywords("before “it” “is”") == ("it", "is")
    assert find_keywords("full stop") == find_keywords("the start of the response") == ()


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_trains_a_head_with_standardised_rewards(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 8, generator=generator) * 3 + 5
    x[:, 0, 0] += 6
    groups = [str(i) for i in range(200)]
    training_set = TrainingSet.from_vectors(x, torch.eye(8), groups)
    head = fit_network(
        training_set,
        NetworkHeadConfig(heads=4, hidden=16, loss=loss, epochs=100, lr=5e-3),
        ignore_progress,
    )
    rewards = head.score_members(head.standardise(x.flatten(0, 1)))
    assert torch.allclose(rewards.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(rewards.std(0), torch.ones(4, dtype=torch.float64), atol=1e-2)
    assert (rewards.reshape(200, 2, 4)[:, 0] > rewards.reshape(200, 2, 4)[:, 1]).double().mean() > 0.8
    assert not torch.equal(head.w1[0], head.w1[1])


def test_a_folder_without_a_bundle_is_not_listed(training_settings: Settings) -> None:
    assert "sae" not in bundle.list_bundles(training_settings.models_dir)


def test_augmented_pairs_teach_a_head_to_ignore_additions() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(300, 2, 6, generator=generator)
    original[:, 0, :2] += 1.0
    augmented = original.clone()
    augmented[:, 1, 1] += 4.0
    groups = [str(i) for i in range(300)]
    without = TrainingSet.from_vectors(original, torch.eye(6), groups)
    with_augmented = without.with_augmented(augmented[:150], groups[:150])
    config = NetworkHeadConfig(heads=4, hidden=16, epochs=60, lr=3e-3, dropout=0.2)
    shares_fooled = []
    for training_set in (without, with_augmented):
        head = fit_network(training_set, config, ignore_progress)
        rewards = head.score_members(head.standardise(original.flatten(0, 1)))
        assert torch.allclose(rewards.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
        assert torch.allclose(rewards.std(0), torch.ones(4, dtype=torch.float64), atol=1e-2)
        unseen = compute_rewards(head, augmented[150:])
        shares_fooled.append(float((unseen[:, 1] > unseen[:, 0]).double().mean()))
    assert shares_fooled[0] > 0.8
    assert shares_fooled[1] < 0.4
