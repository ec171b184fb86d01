"""RewardBench 2: the published metrics on hand-computed rewards."""

import math
from pathlib import Path

import pytest

from app.errors import DataError
from app.evaluate.suites import rewardbench2
from app.evaluate.suites.questions import ItemScores, Question
from app.types import Item
from tests.support import tiny
from tests.support.suite_rows import rewardbench2_rows, write_rows

Rewarded = tuple[Question, dict[Item, float]]


def make_question(
    question_id: str, subset: str, chosen: list[float], rejected: list[float], group: str = ""
) -> Rewarded:
    """Return a question whose responses have these rewards, and the rewards by item."""
    items = [tiny.make_item(question_id, f"{subset} {i}") for i in range(len(chosen) + len(rejected))]
    question = Question(
        question_id, subset, group or question_id, tuple(items[: len(chosen)]), tuple(items[len(chosen) :])
    )
    return question, dict(zip(items, chosen + rejected, strict=True))


def combine(rewarded: list[Rewarded]) -> tuple[list[Question], ItemScores]:
    """Return the questions and the rewards of all of their responses."""
    rewards = {item: reward for _, by_item in rewarded for item, reward in by_item.items()}
    return [question for question, _ in rewarded], ItemScores(rewards, dict.fromkeys(rewards, 1))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (2.0, [1.0, 0.0, -1.0], 1.0),
        (1.0, [2.0, 0.0, -1.0], 0.0),
        (1.0, [1.0, 0.0, -1.0], 1 / 2),
        (1.0, [1.0, 1.0, 1.0], 1 / 4),
        (1.0, [2.0, 1.0, 1.0], 0.0),
    ],
)
def test_responses_that_share_the_highest_reward_share_the_point(
    chosen: float, rejected: list[float], expected: float
) -> None:
    (question,), scores = combine([make_question("1", "Math", [chosen], rejected)])
    assert rewardbench2.score_best_of(question, scores) == expected


def test_ties_weigh_accuracy_and_margins() -> None:
    questions, scores = combine(
        [
            make_question("ref:1", "Ties", [2.0], [1.8], "1"),
            make_question("tied:1", "Ties", [3.0, 2.5], [1.0, 0.5], "1"),
            make_question("tied:2", "Ties", [1.0, 1.0], [0.0], "2"),
            make_question("ref:2", "Ties", [1.0], [0.0], "2"),
            make_question("ref:3", "Ties", [0.0], [1.0], "3"),
            make_question("tied:3", "Ties", [5.0, 1.0], [0.0], "3"),
            make_question("ref:4", "Ties", [0.0], [0.0], "4"),
            make_question("tied:4", "Ties", [1.0, 1.0], [1.0], "4"),
        ]
    )
    groups, parts = rewardbench2.score_ties(questions, scores)
    assert groups == ["1", "2", "3", "4"]
    assert {name: values.tolist() for name, values in parts.items()} == {
        "tied_accuracy": [1, 1, 1, 0],
        "reference_accuracy": [1, 1, 0, 0],
        "spread_within_margin": [1, 1, 0, 0],
        "spread_within_both_margins": [0, 1, 0, 0],
        "relative_margin": pytest.approx([math.tanh(0.2 / 0.5 - 1), 1, math.tanh(-1 / 4 - 1), 0]),
    }
    results = rewardbench2.measure(questions, scores)
    relative = (math.tanh(-0.6) + 1 + math.tanh(-1.25)) / 4
    expected = 0.3 * 3 / 4 + 0.3 * 2 / 4 + 0.2 * 2 / 4 + 0.2 / 4 + 0.01 * relative
    assert results["subsets"]["Ties"]["accuracy"] == pytest.approx(expected)
    assert results["subsets"]["Ties"]["n"] == 4


def test_the_score_is_the_mean_of_the_subsets() -> None:
    questions, scores = combine(
        [
            *(make_question(f"m{i}", "Math", [float(i < 3)], [0.5, 0.2, 0.1]) for i in range(4)),
            *(make_question(f"s{i}", "Safety", [1.0], [0.5, 0.2, 0.1]) for i in range(40)),
        ]
    )
    results = rewardbench2.measure(questions, scores)
    assert list(results["subsets"]) == ["Math", "Safety"]
    assert results["subsets"]["Math"]["accuracy"] == 0.75
    assert results["subsets"]["Safety"]["ci_low"] == results["subsets"]["Safety"]["ci_high"] == 1
    score, math_row = results["score"], results["subsets"]["Math"]
    assert score["accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert score["ci_low"] == pytest.approx((math_row["ci_low"] + 1) / 2, abs=0.13)
    assert score["ci_low"] < score["accuracy"] < score["ci_high"] <= 1
    assert results["missing"] == ["Factuality", "Precise IF", "Focus", "Ties"]
    assert "not in the file" in str(rewardbench2.render(results)[0].caption)


def test_both_questions_of_a_ties_prompt_form_a_group(tmp_path: Path) -> None:
    rows = rewardbench2_rows()
    questions = rewardbench2.read(str(write_rows(tmp_path / "rows.jsonl", rows)))
    groups = [(question.id, question.group) for question in questions if question.subset == "Ties"]
    assert groups == [("ref:0", "0"), ("ref:1", "1"), ("tied:0", "0"), ("tied:1", "1")]


def test_parts_of_ties_are_averaged_over_the_prompts_that_have_them() -> None:
    questions, scores = combine(
        [
            make_question("ref:1", "Ties", [2.0], [1.0], "1"),
            make_question("tied:1", "Ties", [3.0, 2.5], [1.0, 0.5], "1"),
            make_question("tied:2", "Ties", [1.0, 0.5], [2.0], "2"),
            make_question("tied:3", "Ties", [1.0, 0.5], [2.0], "3"),
        ]
    )
    results = rewardbench2.measure(questions, scores)
    assert results["ties"] == {
        "tied_accuracy": pytest.approx(1 / 3), "reference_accuracy": 1, "spread_within_margin": 1,
        "spread_within_both_margins": 1, "relative_margin": pytest.approx(math.tanh(1 / 0.5 - 1)),
    }  # fmt: skip
    expected = 0.3 / 3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1)
    assert results["subsets"]["Ties"]["accuracy"] == pytest.approx(expected)


def test_ties_without_reference_questions_or_with_other_ids_are_refused() -> None:
    questions, scores = combine([make_question("tied:1", "Ties", [1.0, 2.0], [0.0], "1")])
    with pytest.raises(DataError, match="no prompt has both of its questions"):
        rewardbench2.measure(questions, scores)
    questions, scores = combine([make_question("7", "Ties", [1.0, 2.0], [0.0])])
    with pytest.raises(DataError, match="ids in Ties are"):
        rewardbench2.measure(questions, scores)
