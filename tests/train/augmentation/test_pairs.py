"""Augmented pairs and control pairs: what they are made of, and that their features are the right ones."""

import time
from pathlib import Path
from random import Random

import pytest
import torch

from app.settings import Settings
from app.train import features, jobs, pipeline, steps
from app.train.augmentation import pairs as augmentation
from app.train.augmentation.pairs import AugmentationShares, augment_pairs, extract_augmented
from app.train.features import FeatureExtractor
from app.types import Message, Pair, Pooling
from tests.support import tiny
from tests.support.training_setup import ignore_progress, training_config

ALL = AugmentationShares(1.0, 1.0)


def make_pairs(count: int, *, sentences: int = 3) -> list[Pair]:
    """Pairs of random words."""
    rng = Random(0)

    def make_response() -> str:
        return " ".join(" ".join(rng.choices(tiny.WORDS, k=8)) + "." for _ in range(sentences))

    return [
        Pair((Message("user", f"river {n}?"),), make_response(), make_response(), f"group {n}")
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def extractor(training_settings: Settings, trained_sae: Path) -> FeatureExtractor:
    """An extractor for the tiny backbone."""
    return jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)


def test_augmentation_of_a_pair_depends_on_that_pair_alone() -> None:
    pairs = make_pairs(200)
    all_pairs = augment_pairs(pairs, ALL)
    assert [pair.pair_index for pair in all_pairs if not pair.is_control] == list(range(200))
    assert [pair.pair_index for pair in all_pairs if pair.is_control] == list(range(200))
    later = [(pair.chosen, pair.rejected) for pair in all_pairs if pair.pair_index >= 5]
    assert [(pair.chosen, pair.rejected) for pair in augment_pairs(pairs[5:], ALL)] == later
    assert set(augment_pairs(pairs, AugmentationShares())) < set(all_pairs)


def test_shares_are_of_all_pairs() -> None:
    pairs = make_pairs(2000)
    augmented = augment_pairs(pairs, AugmentationShares())
    controls = [pair for pair in augmented if pair.is_control]
    assert 0.46 < (len(augmented) - len(controls)) / len(pairs) < 0.54
    assert 0.22 < len(controls) / len(pairs) < 0.28
    assert augment_pairs(pairs, AugmentationShares(0.0, 0.25)) == []
    assert not any(pair.is_control for pair in augment_pairs(pairs, AugmentationShares(0.5, 0.0)))


def test_augmented_pairs_keep_the_chosen_response_and_change_the_rejected_one() -> None:
    pairs = make_pairs(300)
    augmented = [pair for pair in augment_pairs(pairs, ALL) if not pair.is_control]
    assert all(pair.chosen is None for pair in augmented)
    assert all(pair.rejected.response != pairs[pair.pair_index].rejected for pair in augmented)
    assert all(pair.rejected.messages == pairs[pair.pair_index].messages for pair in augmented)
    kept = sum(pairs[pair.pair_index].rejected in pair.rejected.response for pair in augmented)
    assert kept > 200


def test_control_pairs_have_the_same_texts_in_both_responses() -> None:
    pairs = make_pairs(300)
    controls = [pair for pair in augment_pairs(pairs, ALL) if pair.chosen]
    for control in controls:
        pair = pairs[control.pair_index]
        assert control.chosen
        chosen, rejected = control.chosen.response, control.rejected.response
        for original in (pair.chosen, pair.rejected):
            for sentence in original.split(". "):
                chosen, rejected = chosen.replace(sentence, "", 1), rejected.replace(sentence, "", 1)
        assert chosen.split() == rejected.split()
        assert len(chosen.split()) > 0


def test_features_of_augmented_pairs_are_those_of_their_responses(
    extractor: FeatureExtractor, tmp_path: Path
) -> None:
    pairs = make_pairs(30, sentences=1)
    extracted = steps.extract(pairs, extractor, tmp_path, ignore_progress)
    augmented = augment_pairs(pairs, AugmentationShares(0.7, 0.4))
    result = extract_augmented(pairs, extracted.features, augmented, extractor, tmp_path, ignore_progress)
    assert result
    assert result.is_control == [pair.is_control for pair in augmented]
    assert 0 < sum(result.is_control) < len(result.is_control)
    assert result.groups == [pairs[i].group for i in result.pair_indices]
    rows = [(pair.chosen or pairs[pair.pair_index].items[0], pair.rejected) for pair in augmented]
    expected = features.extract_features(rows, extractor, tmp_path, ignore_progress)
    assert torch.equal(result.features.lengths(), expected.lengths())
    for pooling in Pooling:
        assert torch.equal(
            result.features.pooled_residuals(3, pooling), expected.pooled_residuals(3, pooling)
        )
        assert torch.equal(result.features.mean_activations(pooling), expected.mean_activations(pooling))
    some = result.subset({1, 4, 9})
    kept = [row for row, index in enumerate(result.pair_indices) if index in {1, 4, 9}]
    assert some.is_control == [result.is_control[row] for row in kept]
    assert torch.equal(some.features.lengths(), expected.lengths()[kept])


def test_a_model_is_trained_on_both_kinds(training_settings: Settings, trained_sae: Path) -> None:
    config = training_config(training_settings, trained_sae, "controlled", with_test=True)
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    result = pipeline.train(config, extractor, training_settings.cache, ignore_progress)
    training = result.results["training"]
    assert 70 < training["drills"] < 130
    assert 30 < training["controls"] < 70
    assert result.results["test"]["accuracy"] > 0.9


def test_augmenting_a_thousand_pairs_takes_less_than_a_second() -> None:
    pairs = make_pairs(1000, sentences=20)
    started = time.process_time()
    augmentation.augment_pairs(pairs, AugmentationShares())
    assert time.process_time() - started < 1
