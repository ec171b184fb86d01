"""Blind tests of names: whether a reader who sees only a name can tell which responses express it.

A test shows for each name of a feature or concept responses to prompts that it was not written from: half
of them express it most, the others do not, and are of about the same length. The right answers are kept in a
file of their own, so that readers do not see them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from app.errors import DataError
from app.reward.reward_model import RewardModel
from app.scores import DoubleArray
from app.train.names.responses import Mask, ResponseTable, sort_firing

NUM_ITEMS = 20
MIN_ACCURACY = 0.75
"""Balanced accuracy from which on a name is kept."""
MIN_LOWER_BOUND = 0.6
Z_SCORE = 1.645
"""Of a one-sided interval of 95 %."""


@dataclass(frozen=True, slots=True)
class NamedFeatures:
    """What a test asks about: a name, and the indices of the features that it describes."""

    key: str
    name: str
    indices: list[int]
    definition: str = ""


@dataclass(frozen=True, slots=True)
class NameScore:
    """How well a name was recognised: balanced accuracy, its lower bound, and the number of texts."""

    accuracy: float
    lower_bound: float
    items: int

    @property
    def passed(self) -> bool:
        """Whether the name passes the test and is kept."""
        enough = self.items >= NUM_ITEMS
        return enough and self.accuracy >= MIN_ACCURACY and self.lower_bound > MIN_LOWER_BOUND


def build_test(
    model: RewardModel, table: ResponseTable, named: Sequence[NamedFeatures], *, items: int, round_number: int
) -> tuple[list[dict[str, Any]], dict[str, list[bool]]]:
    """Return the questions, and by key which of their texts express the name.

    The first round, number 0, has the responses that express a name most, each later round the next ones. A
    name that too few responses express for `items` texts is left out.
    """
    questions, answers, rng = [], {}, np.random.default_rng(round_number)
    for entry in named:
        values, fired = measure_expression(model, table, entry.indices)
        order = sort_firing(values, fired, table.is_tested)
        half = items // 2
        strongest = table.take_one_a_prompt(order, half * (round_number + 1))
        absent = table.match_absent(strongest, values, fired, table.is_tested)
        strongest, absent = (rows[half * round_number :] for rows in (strongest, absent))
        if min(len(strongest), len(absent)) < half:
            continue
        shuffled = rng.permutation([*strongest, *absent]).tolist()
        texts = [{"prompt": table.texts[i].prompt, "response": table.texts[i].response} for i in shuffled]
        definition = {"definition": entry.definition} if entry.definition else {}
        questions.append({"key": entry.key, "name": entry.name, **definition, "texts": texts, "fits": []})
        answers[entry.key] = [index in set(strongest) for index in shuffled]
    return questions, answers


def measure_expression(
    model: RewardModel, table: ResponseTable, indices: Sequence[int]
) -> tuple[DoubleArray, Mask]:
    """Return how much each response expresses a feature or concept, (M,), and whether a latent of it fires.

    This is the standardised projection of a feature, or the sum of a concept's contributions times signs.
    """
    columns = list(indices)
    if len(columns) == 1:
        return table.projections[:, columns[0]], table.fired[:, columns[0]]
    x = torch.from_numpy(table.projections)
    contributions = model.head.compute_contributions(x, torch.zeros_like(x[:1]))[:, columns]
    signs = np.array([model.features[index].sign for index in columns])
    values: DoubleArray = (contributions.numpy() * signs).sum(1)
    return values, np.logical_or.reduce(table.fired[:, columns], axis=1)


def score_answers(
    answered: Sequence[Mapping[str, Any]], answers: Mapping[str, list[bool]]
) -> dict[str, NameScore]:
    """Return the score of each name by key; raise DataError for a question that is not answered in full."""
    scores: dict[str, NameScore] = {}
    for row in answered:
        key, fits = str(row["key"]), row.get("fits")
        if key in scores:
            raise DataError(f"{key}: answered twice")
        if key not in answers:
            raise DataError(f"{key}: this test has no such question; was it made for another model?")
        expected = answers[key]
        if (
            not isinstance(fits, list)
            or len(fits) != len(expected)
            or not all(f in (True, False) for f in fits)
        ):
            raise DataError(f"{key}: `fits` needs true or false for each of its {len(expected)} texts")
        scores[key] = score_question(fits, expected)
    return scores


def score_question(fits: Sequence[bool], expected: Sequence[bool]) -> NameScore:
    """Return the balanced accuracy of answers, and its lower bound by Wilson's interval."""
    if not any(expected) or all(expected):
        return NameScore(0.0, 0.0, 0)
    correct, express = np.array(fits) == np.array(expected), np.array(expected)
    accuracy = float(correct[express].mean() + correct[~express].mean()) / 2
    return NameScore(round(accuracy, 3), _compute_lower_bound(accuracy, len(expected)), len(expected))


def _compute_lower_bound(share: float, count: int) -> float:
    """Return the lower end of Wilson's one-sided interval of a share."""
    square = Z_SCORE**2 / count
    spread = Z_SCORE * ((share * (1 - share) + square / 4) / count) ** 0.5
    return round(float((share + square / 2 - spread) / (1 + square)), 3)
