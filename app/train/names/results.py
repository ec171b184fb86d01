"""Blind tests on disk, and what they change in a bundle: names, their scores, and concepts.

A test is a file of questions to answer, and a file of right answers in the folder of the evidence, so that
readers do not see them.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.data.pairs import read_json_lines
from app.errors import DataError
from app.reward.reward_model import Concept, RewardModel
from app.train.feature_cache import write_atomically
from app.train.names.blind_test import (
    MIN_ACCURACY,
    MIN_LOWER_BOUND,
    NUM_ITEMS,
    NamedFeatures,
    NameScore,
    build_test,
    score_answers,
)
from app.train.names.naming_sheet import refuse_existing
from app.train.names.responses import STALE, ResponseTable, compute_features_digest
from app.types import FORBID_EXTRA, Feature

TEST_INSTRUCTIONS = (
    "For each question write into `fits` true or false for each text: whether the response fits the name. "
    "About half of the texts do."
)


@dataclass(frozen=True, slots=True)
class TestKey:
    """The right answers of a test, and the names and concepts that it asks about."""

    __pydantic_config__ = FORBID_EXTRA
    model: str
    names: dict[int, str]
    concepts: tuple[Concept, ...]
    answers: dict[str, list[bool]]
    features_sha256: str
    round_number: int


@dataclass(frozen=True, slots=True)
class TestedName:
    """The name of a feature or concept that was tested, in which round, and its score."""

    key: str
    name: str
    score: NameScore
    round_number: int


def write_test(
    model: RewardModel,
    folder: Path,
    names: Mapping[int, str],
    concepts: Sequence[Concept],
    out: Path,
    *,
    items: int,
    round_number: int,
) -> int:
    """Write a blind test of names and concepts to `out`, and its answers into the evidence folder.

    Returns the number of questions. Names that too few responses express have none.
    """
    refuse_existing(out)
    index = model.index_by_latent
    asked = [NamedFeatures(str(latent), name, [index[latent]]) for latent, name in names.items()]
    asked += [
        NamedFeatures(concept.name, concept.name, [index[i] for i in concept.latents], concept.definition)
        for concept in concepts
    ]
    table = ResponseTable.load(folder, model)
    questions, answers = build_test(model, table, asked, items=items, round_number=round_number)
    test = secrets.token_hex(8)
    rows = [{"test": test, **question} for question in questions]
    key = TestKey(
        model.card.name, dict(names), tuple(concepts), answers, compute_features_digest(model), round_number
    )
    write_atomically(_key_file(folder, test), TypeAdapter(TestKey).dump_json(key).decode())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def score_test(
    model: RewardModel, folder: Path, answered: Sequence[Mapping[str, Any]]
) -> tuple[RewardModel, list[TestedName]]:
    """Return the model with the names and concepts that passed, and all scores, the best first.

    A tested name that did not pass is removed. Features and concepts that were not tested stay as they are.
    """
    scored: list[TestedName] = []
    for test in dict.fromkeys(str(row.get("test")) for row in answered):
        rows = [row for row in answered if str(row.get("test")) == test]
        key = _read_key(folder, test)
        if key.model != model.card.name:
            raise DataError(f"this test is about {key.model}, not about {model.card.name}")
        if key.features_sha256 != compute_features_digest(model):
            raise DataError(STALE.format(name=model.card.name))
        scores = score_answers(rows, key.answers)
        model = apply_scores(model, key.names, key.concepts, scores)
        tested = {str(latent): name for latent, name in key.names.items()}
        scored += [
            TestedName(name, tested.get(name, name), score, key.round_number)
            for name, score in scores.items()
        ]
    return model, sorted(scored, key=lambda tested_name: -tested_name.score.accuracy)


def apply_scores(
    model: RewardModel,
    names: Mapping[int, str],
    concepts: Sequence[Concept],
    scores: Mapping[str, NameScore],
) -> RewardModel:
    """Return the model with the tested names and concepts that are good enough, and without the others."""
    features = tuple(_apply_to_feature(feature, names, scores) for feature in model.features)
    tested = {concept.name for concept in concepts if concept.name in scores}
    replaced = {latent for concept in concepts if concept.name in tested for latent in concept.latents}
    kept = [
        concept
        for concept in model.concepts
        if concept.items and concept.name not in tested and not replaced.intersection(concept.latents)
    ]
    passed = [
        replace(concept, score=scores[concept.name].accuracy, items=scores[concept.name].items)
        for concept in concepts
        if concept.name in tested and scores[concept.name].passed
    ]
    return replace(model, features=features, concepts=(*kept, *passed))


def read_answers(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read answered questions from files of JSON lines."""
    rows = []
    for file in files:
        for location, row in read_json_lines(file):
            if "test" not in row or "key" not in row:
                raise DataError(f"{location}: needs the `test` and the `key` of a question")
            rows.append(dict(row))
    return rows


def describe_results(scored: Sequence[TestedName], earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return all scores for the report, those of earlier tests of other names or rounds included."""
    rows = [
        {
            "key": tested.key, "name": tested.name, "round": tested.round_number, **asdict(tested.score),
            "passed": tested.score.passed,
        }
        for tested in scored
    ]  # fmt: skip
    again = {(row["key"], row["round"]) for row in rows}
    rows += [row for row in earlier if (row["key"], row["round"]) not in again]
    thresholds = {"min_accuracy": MIN_ACCURACY, "min_items": NUM_ITEMS, "min_lower_bound": MIN_LOWER_BOUND}
    return {**thresholds, "names": rows}


def _apply_to_feature(feature: Feature, names: Mapping[int, str], scores: Mapping[str, NameScore]) -> Feature:
    score = scores.get(str(feature.latent))
    if score is None or feature.latent not in names:
        return feature
    if not score.passed:
        return replace(feature, label=None, label_score=None, label_items=0, keywords=())
    return replace(
        feature, label=names[feature.latent], label_score=score.accuracy, label_items=score.items, keywords=()
    )


def _key_file(folder: Path, test: str) -> Path:
    return folder / f"answers-{test}.json"


def _read_key(folder: Path, test: str) -> TestKey:
    if not test.isalnum():
        raise DataError(f"{test[:40]!r} is not the number of a test")
    try:
        return TypeAdapter(TestKey).validate_json(_key_file(folder, test).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise DataError(
            f"no answers for test {test} in {folder}; tests are scored on the machine where "
            "`sparserm names test` made them"
        ) from error
