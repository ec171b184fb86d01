"""Blind tests on disk, and what they change in a bundle: names, their scores, and concepts.

A test is a file of questions to answer, and a file of right answers in the folder of the evidence, so that
whoever answers does not see them.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.errors import DataError
from app.reward.reward_model import Concept, RewardModel
from app.train.feature_cache import write_atomically
from app.train.names.quiz import NamedFeatures, NameScore, build_quiz, score_answers
from app.train.names.responses import ResponseTable
from app.types import FORBID_EXTRA, Feature

QUIZ_INSTRUCTIONS = (
    "For each question write into `fits` true or false for each text: whether the response fits the name. "
    "About half of the texts do."
)


@dataclass(frozen=True, slots=True)
class QuizKey:
    """The right answers of a test, and the names and concepts that it asks about."""

    __pydantic_config__ = FORBID_EXTRA
    model: str
    names: dict[int, str]
    concepts: tuple[Concept, ...]
    answers: dict[str, list[bool]]


@dataclass(frozen=True, slots=True)
class NamedThing:
    """A feature or a concept that was tested, with its name and score."""

    key: str
    name: str
    score: NameScore


def write_quiz(
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

    Returns the number of questions.
    """
    index = model.index_by_latent
    asked = [NamedFeatures(str(latent), name, [index[latent]]) for latent, name in names.items()]
    asked += [
        NamedFeatures(concept.name, concept.name, [index[i] for i in concept.latents], concept.definition)
        for concept in concepts
    ]
    table = ResponseTable.load(folder)
    questions, answers = build_quiz(model, table, asked, items=items, round_number=round_number)
    quiz = secrets.token_hex(8)
    rows = [{"quiz": quiz, **question} for question in questions]
    key = QuizKey(model.card.name, dict(names), tuple(concepts), answers)
    write_atomically(_key_file(folder, quiz), TypeAdapter(QuizKey).dump_json(key).decode())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def score_quiz(
    model: RewardModel, folder: Path, answered: Sequence[Mapping[str, Any]]
) -> tuple[RewardModel, list[NamedThing]]:
    """Return the model with the names and concepts that passed, and all scores, the best first.

    A tested name that did not pass is removed. Features and concepts that were not tested stay as they are.
    """
    scored: list[NamedThing] = []
    for quiz in dict.fromkeys(str(row.get("quiz")) for row in answered):
        rows = [row for row in answered if str(row.get("quiz")) == quiz]
        key = _read_key(folder, quiz)
        if key.model != model.card.name:
            raise DataError(f"this test is about {key.model}, not about {model.card.name}")
        scores = score_answers(rows, key.answers)
        model = apply_scores(model, key.names, key.concepts, scores)
        tested = {str(latent): name for latent, name in key.names.items()}
        scored += [NamedThing(name, tested.get(name, name), score) for name, score in scores.items()]
    return model, sorted(scored, key=lambda thing: -thing.score.accuracy)


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
        if concept.name in tested and scores[concept.name].is_good
    ]
    return replace(model, features=features, concepts=(*kept, *passed))


def read_answers(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read answered questions from files of JSON lines."""
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict) or "quiz" not in row or "key" not in row:
                raise DataError(f"{file}:{number}: needs the `quiz` and the `key` of a question")
            rows.append(row)
    return rows


def describe_results(scored: Sequence[NamedThing]) -> dict[str, Any]:
    """Return all scores of a test, failures included, for the report."""
    accuracies = [thing.score.accuracy for thing in scored]
    return {
        "tested": len(scored),
        "passed": sum(thing.score.is_good for thing in scored),
        "mean_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "names": [
            {"key": thing.key, "name": thing.name, **asdict(thing.score), "kept": thing.score.is_good}
            for thing in scored
        ],
    }


def _apply_to_feature(feature: Feature, names: Mapping[int, str], scores: Mapping[str, NameScore]) -> Feature:
    score = scores.get(str(feature.latent))
    if score is None or feature.latent not in names:
        return feature
    if not score.is_good:
        return replace(feature, label=None, label_score=None, label_items=0, keywords=())
    return replace(
        feature, label=names[feature.latent], label_score=score.accuracy, label_items=score.items, keywords=()
    )


def _key_file(folder: Path, quiz: str) -> Path:
    return folder / f"answers-{quiz}.json"


def _read_key(folder: Path, quiz: str) -> QuizKey:
    if not quiz.isalnum():
        raise DataError(f"{quiz[:40]!r} is not the number of a test")
    try:
        return TypeAdapter(QuizKey).validate_json(_key_file(folder, quiz).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise DataError(
            f"no answers for test {quiz} in {folder}; tests are scored on the machine where "
            "`sparserm names test` made them"
        ) from error
