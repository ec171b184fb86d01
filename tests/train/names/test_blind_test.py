"""Blind tests: half of the texts express a name, prompts are new, and scores follow from the answers."""

import math

import numpy as np
import pytest

from app.errors import DataError
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train.names.blind_test import (
    NamedFeatures,
    build_test,
    measure_expression,
    score_answers,
    score_question,
)
from app.train.names.evidence import evidence_folder, load_evidence
from app.train.names.responses import ResponseTable
from tests.support import named_models


def test_half_of_the_texts_express_the_name_and_none_was_evidence(
    named_settings: Settings, named_model: RewardModel
) -> None:
    folder = evidence_folder(named_settings.cache, named_models.NAME)
    table, evidence = ResponseTable.load(folder, named_model), load_evidence(folder, named_model)
    names = [
        NamedFeatures(str(f.latent), f"name {f.latent}", [named_model.index_by_latent[f.latent]])
        for f in evidence.features
    ]
    questions, answers = build_test(named_model, table, names, items=8, round_number=0)
    seen = {c.text.prompt for f in evidence.features for c in (*f.strongest, *f.absent, *f.near_misses)}
    assert 0 < len(questions) <= len(names)
    by_key = {name.key: name for name in names}
    for question in questions:
        name = by_key[question["key"]]
        expected = answers[name.key]
        assert len(question["texts"]) == len(expected) == 8
        assert sum(expected) * 2 == len(expected)
        assert question["fits"] == []
        assert not seen & {text["prompt"] for text in question["texts"]}
        fired = {table.texts[i].response for i in np.flatnonzero(table.fired[:, name.indices[0]])}
        assert [text["response"] in fired for text in question["texts"]] == expected


def test_each_round_has_other_texts(named_settings: Settings, named_model: RewardModel) -> None:
    table = ResponseTable.load(evidence_folder(named_settings.cache, named_models.NAME), named_model)
    k = int(table.fired[table.is_tested].sum(0).argmax())
    name = NamedFeatures("x", "x", [k])
    rounds = [build_test(named_model, table, [name], items=6, round_number=number) for number in range(2)]
    shown = [{text["response"] for text in questions[0]["texts"]} for questions, _ in rounds]
    assert shown[0]
    assert not shown[0] & shown[1]
    again = build_test(named_model, table, [name], items=6, round_number=0)
    assert again == rounds[0]


def test_a_concept_is_expressed_by_the_sum_of_its_contributions(
    named_settings: Settings, named_model: RewardModel
) -> None:
    table = ResponseTable.load(evidence_folder(named_settings.cache, named_models.NAME), named_model)
    raising = [k for k, feature in enumerate(named_model.features) if feature.sign > 0][:3]
    values, fired = measure_expression(named_model, table, raising)
    assert (fired == table.fired[:, raising].any(1)).all()
    head = named_model.head
    weights = ((head.w1[:, 0] * head.w2).mean(0)).numpy()
    assert values == pytest.approx(table.projections[:, raising] @ weights[raising])


def test_scores_are_balanced_and_have_a_lower_bound() -> None:
    expected = [True] * 10 + [False] * 10
    assert score_question(expected, expected).accuracy == 1.0
    assert score_question(expected, expected).passed
    half = score_question([True] * 20, expected)
    assert half.accuracy == 0.5
    assert not half.passed
    fifteen = score_question([True] * 10 + [True] * 5 + [False] * 5, expected)
    assert fifteen.accuracy == 0.75
    assert fifteen.lower_bound < 0.6
    assert not fifteen.passed
    sixteen = score_question([True] * 10 + [True] * 4 + [False] * 6, expected)
    assert (sixteen.accuracy, sixteen.passed) == (0.8, True)
    assert not score_question([True] * 4 + [False] * 4, [True] * 4 + [False] * 4).passed
    assert score_question([True], [True]).items == 0


def test_the_lower_bound_is_that_of_wilson() -> None:
    score = score_question([True] * 9 + [False] * 11, [True] * 10 + [False] * 10)
    p, n, z = 0.95, 20, 1.645
    expected = (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert score.lower_bound == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "7", "fits": [True]}, "no such question"),
        ({"key": "1", "fits": [True]}, "each of its 2 texts"),
        ({"key": "1"}, "each of its 2 texts"),
        ({"key": "1", "fits": ["false", "true"]}, "each of its 2 texts"),
    ],
)
def test_incomplete_answers_are_errors(row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_answers([row], {"1": [True, False]})


def test_a_question_is_answered_once() -> None:
    row = {"key": "1", "fits": [True, False]}
    with pytest.raises(DataError, match="answered twice"):
        score_answers([row, row], {"1": [True, False]})
