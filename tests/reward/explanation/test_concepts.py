"""Contributions of concepts: their sums, what they cover, their phrases, and their differences."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.reward.engine import Engine
from app.reward.explanation.concepts import compute_coverage, subtract_concepts, sum_concepts
from app.reward.reward_model import Concept, RewardModel, check_concepts
from app.scores import Score
from app.types import Explain, Feature, Item, ScoreOptions
from tests.support import tiny

ITEMS = tiny.random_items(6)


def add_concepts(model: RewardModel) -> RewardModel:
    """Return the model with two concepts that raise rewards and one that lowers them."""
    latents = [feature.latent for feature in model.features]
    half = tiny.K // 2
    concepts = (
        Concept("names a river", tuple(latents[:3]), 1, score=0.9, items=20),
        Concept("is quiet", tuple(latents[3:half]), 1),
        Concept("thunders", tuple(latents[half : half + 4]), -1),
    )
    check_concepts(concepts, model.features)
    return replace(model, concepts=concepts)


def score(engine: Engine, model: RewardModel, items: list[Item], **options: Any) -> list[Score]:
    scorer = Engine(engine.backbone, engine.text, {model.card.name: model})
    request = replace(ScoreOptions((model.card.name,), top_k=tiny.K), **options)
    return [scored for (scored,) in tiny.score_items(scorer, items, request)]


@pytest.mark.parametrize("name", ["alpha", "beta", "delta"])
def test_concepts_sum_to_the_contributions_of_their_features(engine: Engine, name: str) -> None:
    model = add_concepts(engine.models[name])
    for scored in score(engine, model, ITEMS, explain=Explain.TOKENS):
        contributions = {f.feature.latent: f.contribution for f in scored.features}
        by_name = {concept.name: concept for concept in scored.concepts}
        assert by_name.keys() == {"names a river", "is quiet", "thunders", None}
        for concept in model.concepts:
            expected = sum(contributions[latent] for latent in concept.latents)
            assert by_name[concept.name].contribution == pytest.approx(expected, abs=1e-12)
        total = sum(concept.contribution for concept in scored.concepts)
        assert total == pytest.approx(sum(contributions.values()), abs=1e-12)
        sizes = [abs(concept.contribution) for concept in scored.concepts]
        assert sizes == sorted(sizes, reverse=True)
        if name != "beta":
            for part in (c for c in scored.concepts if c.name):
                assert sum(part.credits) == pytest.approx(part.contribution, abs=1e-12)


@pytest.mark.parametrize("top_k", [0, 1, 2, tiny.K])
def test_as_many_features_are_listed_as_were_asked_for(engine: Engine, top_k: int) -> None:
    for explain in (Explain.FEATURES, Explain.TOKENS):
        for scored in score(engine, engine.models["alpha"], ITEMS, top_k=top_k, explain=explain):
            sizes = [abs(feature.contribution) for feature in scored.features]
            assert sizes == sorted(np.abs(scored.contributions).tolist(), reverse=True)[:top_k]


def test_coverage_is_the_share_of_sizes_in_concepts(engine: Engine) -> None:
    model = add_concepts(engine.models["alpha"])
    contributions = np.zeros(tiny.K)
    assert compute_coverage(model, contributions) is None
    contributions[0], contributions[-1] = 3.0, -1.0
    assert compute_coverage(model, contributions) == pytest.approx(0.75)
    contributions[tiny.K // 2] = -4.0
    assert compute_coverage(model, contributions) == pytest.approx(7 / 8)


def test_phrases_are_of_the_response_and_only_where_it_expresses_the_concept(engine: Engine) -> None:
    model = add_concepts(engine.models["alpha"])
    phrases = 0
    for item, scored in zip(ITEMS, score(engine, model, ITEMS), strict=True):
        for concept in scored.concepts:
            if concept.phrase is None:
                continue
            phrases += 1
            assert concept.contribution * concept.sign > 0
            assert concept.phrase in " ".join(item.response.split())
    assert phrases


def test_without_concepts_labels_group_features(engine: Engine) -> None:
    model = engine.models["alpha"]
    features = tuple(replace(f, label="amber") if i < 2 else f for i, f in enumerate(model.features))
    labelled = replace(model, features=features, concepts=())
    (concept,) = labelled.concepts
    assert concept == Concept("amber", tuple(f.latent for f in features[:2]), 1)
    merged = sum_concepts(labelled, np.arange(tiny.K, dtype=float), "alpha")
    assert {c.name: c.contribution for c in merged} == {"amber": 1.0, None: tiny.K * (tiny.K - 1) / 2 - 1}


def test_differences_take_the_phrase_of_the_response_that_expresses_more(engine: Engine) -> None:
    model = add_concepts(engine.models["alpha"])
    a, b, *_ = score(engine, model, ITEMS)
    own = {(s, c.name): c for s, scored in (("a", a), ("b", b)) for c in scored.concepts}
    for difference in subtract_concepts(a, b):
        name = difference.name
        expected = own["a", name].contribution - own["b", name].contribution
        assert difference.contribution == pytest.approx(expected)
        more = "a" if expected * (difference.sign or 1) > 0 else "b"
        assert difference.phrase == own[more, name].phrase


FEATURES = (Feature(3, 1), Feature(5, 1), Feature(8, -1))


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ((Concept("a", (3,), 1), Concept("a", (5,), 1)), "'a'"),
        ((Concept("a", (4,), 1),), "no feature 4"),
        ((Concept("a", (3,), 1), Concept("b", (3, 5), 1)), "feature 3 is in 'a' and in 'b'"),
        ((Concept("a", (3, 8), 1),), "different concepts"),
        ((Concept("a", (), 1),), "has no features"),
        ((Concept("12", (3,), 1),), "not a number"),
        ((Concept("", (3,), 1),), "name of its own"),
    ],
)
def test_concepts_are_checked(concepts: tuple[Concept, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_concepts(concepts, FEATURES)
