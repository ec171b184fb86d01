"""RM-Bench: the matrix of styles, its levels, and the average over domains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import DataError
from app.evaluate.suites import rm_bench
from app.evaluate.suites.questions import ItemScores, Question
from tests.support import tiny
from tests.support.suite_rows import rm_bench_rows, write_rows


def make_questions(rewards: dict[str, list[list[float]]]) -> tuple[list[Question], ItemScores]:
    """Return questions by domain, each with the rewards of its chosen and rejected styles, six numbers."""
    questions: list[Question] = []
    by_item: dict[Any, float] = {}
    for domain, rows in rewards.items():
        for number, row in enumerate(rows):
            items = tuple(tiny.make_item(f"{domain} {number}", f"style {i}") for i in range(6))
            by_item |= dict(zip(items, row, strict=True))
            name = f"{domain}/{number}"
            questions.append(Question(name, domain, name, items[:3], items[3:]))
    return questions, ItemScores(by_item, dict.fromkeys(by_item, 1))


def test_levels_are_triangles_of_the_matrix_and_ties_are_wrong() -> None:
    """The reward rises with the style, so fancier responses win, and equal styles tie."""
    questions, scores = make_questions({"chat": [[0, 1, 2, 0, 1, 2]]})
    results = rm_bench.measure(questions, scores)
    assert results["matrix"] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    levels = {level: row["accuracy"] for level, row in results["total"].items()}
    assert levels == {"average": pytest.approx(1 / 3), "easy": 1, "normal": 0, "hard": 0}
    (question,) = questions
    assert rm_bench.compare_styles(question, scores).tolist() == results["matrix"]


def test_domains_count_equally_and_safety_is_the_mean_of_its_parts() -> None:
    right, wrong = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    questions, scores = make_questions(
        {
            "chat": [right, wrong],
            "code": [right] * 10,
            "math": [wrong] * 3,
            "safety-refuse": [right] * 8,
            "safety-response": [wrong] * 2,
        }
    )
    results = rm_bench.measure(questions, scores)
    averages = {name: row["average"]["accuracy"] for name, row in results["domains"].items()}
    assert averages == {
        "chat": 0.5, "math": 0, "code": 1, "safety": 0.5, "safety-refuse": 1, "safety-response": 0,
    }  # fmt: skip
    assert list(averages) == ["chat", "math", "code", "safety", "safety-refuse", "safety-response"]
    total = results["total"]
    assert total["average"]["accuracy"] == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    levels = [total[level]["accuracy"] for level in rm_bench.LEVELS]
    assert np.mean(levels) == pytest.approx(total["average"]["accuracy"])
    assert total["average"]["n"] == 25
    assert total["average"]["ci_low"] == pytest.approx(0.375)
    assert total["average"]["ci_high"] == pytest.approx(0.625)
    assert results["missing"] == []


def test_a_missing_domain_is_named() -> None:
    questions, scores = make_questions({"chat": [[1, 1, 1, 0, 0, 0]], "safety-refuse": [[0, 0, 0, 1, 1, 1]]})
    results = rm_bench.measure(questions, scores)
    assert results["missing"] == ["math", "code"]
    assert results["total"]["average"]["accuracy"] == 0.5
    levels, matrix = rm_bench.render(results)
    assert "math, code" in str(levels.caption)
    assert len(matrix.rows) == 3


def test_a_question_needs_three_responses_of_each_kind(tmp_path: Path) -> None:
    rows = rm_bench_rows(1)
    rows[1]["chosen"].append("a fourth style")
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match="'code/0': RM-Bench has 3"):
        rm_bench.read(source)
    errors: list[DataError] = []
    assert len(rm_bench.read(source, errors.append)) == 4
    assert len(errors) == 1
