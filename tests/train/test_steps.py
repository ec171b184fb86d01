"""A model of features of responses, from pairs to a served bundle: everything agrees with the engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import DataError
from app.reward import bundle, loading
from app.settings import Settings
from app.train import jobs, pipeline, steps
from app.train.assembly import REMAINDER_LABEL
from app.train.features import extract_features
from app.train.head.linear import LinearHeadConfig
from app.train.jobs import BackboneLayer
from app.train.pipeline import TrainingConfig
from app.train.reward_function import RewardFunction
from app.train.sae.response_sae import ResponseSaeConfig
from app.types import Explain, HeadKind, Pooling, SaeInput, ScoreOptions
from tests.support import tiny
from tests.support.training_setup import ignore_progress

NAME = "responses"
SAE = ResponseSaeConfig(latents=32, k=4, steps=300, batch=128)


def response_config(settings: Settings, **choices: object) -> tuple[TrainingConfig, BackboneLayer]:
    """Return the configuration of a small model of features of responses, and its source."""
    root = settings.models_dir.parent
    source = BackboneLayer(str(root / "backbone"), 3)
    fields = {"k": 8, "max_pairs": 200, "response_sae": SAE, "head": LinearHeadConfig(heads=3), **choices}
    config = jobs.build_training_config(
        NAME, str(root / "pairs.jsonl"), str(root / "test.jsonl"), data_license="CC0", source=source,
        on_bad_row=None, **fields,
    )  # fmt: skip
    return config, source


@pytest.fixture(scope="module")
def own_settings(training_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings with a folder of models of its own, which has a trained bundle."""
    models = tmp_path_factory.mktemp("models")
    settings = training_settings.model_copy(update={"models_dir": models, "models": NAME})
    config, source = response_config(training_settings)
    jobs.train_and_save(config, source, settings, ignore_progress)
    return settings


def test_the_bundle_says_what_it_reads(own_settings: Settings) -> None:
    model = bundle.load_bundle(own_settings.models_dir / NAME)
    card = model.card
    assert (card.sae_input, card.head_kind, card.hidden) == (SaeInput.RESPONSES, HeadKind.LINEAR, 1)
    assert card.sae == "of the responses in pairs.jsonl"
    num_signed = sum(feature.sign != 0 for feature in model.features)
    assert 8 < num_signed <= 16
    assert card.directions - num_signed in (0, 1)
    rest = [feature for feature in model.features if not feature.sign]
    assert [feature.label for feature in rest] == [REMAINDER_LABEL] * (card.directions - num_signed)
    assert all(feature.agreement is not None for feature in model.features if feature.sign)
    report = json.loads((own_settings.models_dir / NAME / "report.json").read_text())
    assert report["response_sae"]["latents"] == 32
    assert report["test"]["accuracy"] > 0.9


def test_the_engine_gives_the_rewards_of_training(
    own_settings: Settings, training_settings: Settings
) -> None:
    engine = loading.load_engine(own_settings, ignore_progress)
    engine.verify()
    model = engine.models[NAME]
    config, source = response_config(training_settings)
    extractor = jobs.load_feature_extractor(source, own_settings, ignore_progress, passages=True)
    pairs = config.test_pairs[:20]
    features = extract_features([p.items for p in pairs], extractor, own_settings.cache, ignore_progress)
    expected = RewardFunction.from_model(model).compute_rewards(features)
    items = [item for pair in pairs for item in pair.items]
    scores = [row[0] for row in tiny.score_items(engine, items, ScoreOptions((NAME,), Explain.FEATURES))]
    rewards = torch.tensor([score.reward for score in scores]).reshape(-1, 2)
    assert torch.allclose(rewards.double(), expected, atol=2e-3)
    pooled = features.pooled_residuals(3, Pooling.MEAN).flatten(0, 1)
    activations = torch.from_numpy(scores[5].activations)
    assert torch.allclose(activations, model.dictionary.encode(pooled)[5], atol=1e-3)
    for score in scores:
        total = score.baseline + score.contributions.sum() + score.length_correction
        assert score.reward == pytest.approx(total, abs=1e-9)


def test_features_with_a_sign_only_act_in_its_direction(own_settings: Settings) -> None:
    model = bundle.load_bundle(own_settings.models_dir / NAME)
    weights = (model.head.w1[:, 0] * model.head.w2).mean(0)
    signs = torch.tensor([feature.sign for feature in model.features])
    assert (weights * signs >= 0).all()


def test_the_rest_is_orthogonal_to_the_selected_directions(own_settings: Settings) -> None:
    directions = bundle.load_bundle(own_settings.models_dir / NAME).dictionary.directions
    gram = directions @ directions.T
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-3)


def test_training_again_gives_the_same_bundle(
    own_settings: Settings, training_settings: Settings, tmp_path: Path
) -> None:
    config, source = response_config(training_settings)
    again = own_settings.model_copy(update={"models_dir": tmp_path})
    jobs.train_and_save(config, source, again, ignore_progress)
    sums = [(folder / NAME / "SHA256SUMS").read_text() for folder in (own_settings.models_dir, tmp_path)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("pooling", [Pooling.LAST, Pooling.END])
def test_other_poolings_read_no_passages(
    pooling: Pooling, training_settings: Settings, tmp_path: Path
) -> None:
    config, source = response_config(training_settings, pooling=pooling)
    config = replace(config, test_pairs=[])
    settings = training_settings.model_copy(update={"models_dir": tmp_path, "models": NAME})
    model = jobs.train_and_save(config, source, settings, ignore_progress)
    assert (model.card.readout, model.card.passages) == (pooling, None)
    loading.load_engine(settings, ignore_progress).verify()


def test_too_many_directions_are_an_error_that_says_what_to_do(training_settings: Settings) -> None:
    config, source = response_config(training_settings, k=20)
    extractor = jobs.load_feature_extractor(source, training_settings, ignore_progress)
    with pytest.raises(DataError, match="40 latents, but the SAE has 32; choose fewer with --k"):
        pipeline.train(config, extractor, training_settings.cache, ignore_progress)


def test_linear_heads_work_on_features_of_tokens(training_settings: Settings, trained_sae: Path) -> None:
    config, _ = response_config(training_settings)
    config = replace(config, sae_input=SaeInput.TOKENS, test_pairs=[], max_pairs=100)
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    model = pipeline.train(config, extractor, training_settings.cache, ignore_progress).model
    assert (model.card.sae_input, model.card.head_kind) == (SaeInput.TOKENS, HeadKind.LINEAR)
    without = replace(extractor, dictionary=None)
    with pytest.raises(DataError, match="features of tokens need an SAE of tokens"):
        pipeline.train(config, without, training_settings.cache, ignore_progress)


def test_a_silent_latent_stands_for_the_merged_directions(own_settings: Settings) -> None:
    model = bundle.load_bundle(own_settings.models_dir / NAME)
    signs = torch.tensor([float(feature.sign) for feature in model.features if feature.sign])
    directions = steps.DirectionSet(
        model.dictionary.select(torch.arange(len(signs))), signs, model.card.layer, model.card.readout
    )
    merged = torch.nn.functional.normalize(torch.randn(1, tiny.WIDTH), dim=1)
    function = RewardFunction(
        torch.cat([directions.dictionary.directions, merged]), model.head, model.card.layer, Pooling.MEAN
    )
    dictionary = steps.build_dictionary(directions, function)
    assert torch.equal(dictionary.directions[-1:], merged)
    assert (dictionary.encode(torch.randn(50, tiny.WIDTH) * 100)[:, -1] == 0).all()
