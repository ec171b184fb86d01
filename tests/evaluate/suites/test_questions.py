"""Questions are the same from released rows and from the pairs of `sparserm data`."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.data.public_datasets import write_public_dataset
from app.errors import DataError
from app.evaluate.suites.questions import Question, read_questions, take_first
from tests.support import tiny
from tests.support.suite_rows import rewardbench2_rows, rm_bench_rows, write_rows

BENCHMARKS: list[tuple[str, str, list[dict[str, Any]]]] = [
    ("rewardbench2", "subset", rewardbench2_rows()),
    ("rm-bench", "domain", rm_bench_rows()),
]


@pytest.mark.parametrize(("name", "subset_key", "rows"), BENCHMARKS)
def test_pairs_restore_the_released_questions(
    tmp_path: Path, name: str, subset_key: str, rows: list[dict[str, Any]]
) -> None:
    released = write_rows(tmp_path / "released.jsonl", rows)
    write_public_dataset(name, tmp_path, source=str(released))
    questions = read_questions(str(released), subset_key)
    assert read_questions(str(tmp_path / f"{name}_test.jsonl"), subset_key) == questions
    assert [question.id for question in questions] == [row["id"] for row in rows]
    for question, row in zip(questions, rows, strict=True):
        assert [item.response for item in question.chosen] == row["chosen"]
        assert [item.response for item in question.rejected] == row["rejected"]
        assert {item.messages[0].content for item in question.items} == {row["prompt"]}
        assert question.subset == row[subset_key]


def test_an_incomplete_file_is_refused(tmp_path: Path) -> None:
    released = write_rows(tmp_path / "released.jsonl", rm_bench_rows(1))
    write_public_dataset("rm-bench", tmp_path, source=str(released))
    lines = (tmp_path / "rm-bench_test.jsonl").read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(lines[:11]))
    with pytest.raises(DataError, match=r"cut.jsonl:10: question 'code/0' lacks some of its chosen"):
        read_questions(str(tmp_path / "cut.jsonl"), "domain")
    pair = {"prompt": "river?", "chosen": "a", "rejected": "b", "domain": "chat"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    with pytest.raises(DataError, match=r"pairs.jsonl:1: no 'question'"):
        read_questions(str(tmp_path / "pairs.jsonl"), "domain")


def test_a_question_without_a_response_or_subset_stops_or_is_reported(tmp_path: Path) -> None:
    rows = rm_bench_rows(1)
    rows[0]["rejected"][1] = ""
    rows[1]["rejected"] = []
    del rows[2]["domain"]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match=r"rows.jsonl:1"):
        read_questions(source, "domain")
    errors: list[DataError] = []
    assert len(read_questions(source, "domain", errors.append)) == 2
    assert [str(error).partition(": ")[0] for error in errors] == [f"rows.jsonl:{i}" for i in (1, 2, 3)]


def test_a_limit_counts_the_prompts_of_each_subset() -> None:
    items = (tiny.make_item("river?", "stone"),)
    questions = [
        Question(f"{subset}{group}{i}", subset, group, items, items)
        for i in range(2)
        for group in "pqr"
        for subset in "ab"
    ]
    assert take_first(questions, 0) == questions
    kept = take_first(questions, 2)
    assert len(kept) == 8
    assert {question.group for question in kept} == {"p", "q"}


def test_rows_that_cannot_be_read_are_reported_and_the_others_kept(tmp_path: Path) -> None:
    first, *others = (json.dumps(row) for row in rm_bench_rows(1))
    nameless = json.dumps({"question": "q", "domain": "chat", "prompt": "river?"})
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join([first, "{broken", nameless, *others]))
    errors: list[DataError] = []
    assert len(read_questions(str(source), "domain", errors.append)) == 1 + len(others)
    assert [str(error).partition(": ")[0] for error in errors] == ["rows.jsonl:2", "rows.jsonl:3"]
