"""Small samples of every public data set become valid pairs; train and test share no prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.data.pairs import read_pairs
from app.data.public_datasets import PUBLIC_DATASETS, write_public_dataset
from app.errors import DataError
from app.types import Message, Pair
from tests.support.suite_rows import rewardbench2_row

HH = "\n\nHuman: river?\n\nAssistant: yes?\n\nHuman: which?\n\nAssistant:"
QUESTION = {"role": "user", "content": "river?"}
RAW_ROWS: dict[str, tuple[list[dict[str, Any]], int]] = {
    "truthfulqa": (
        [
            {
                "question": "What is amber?", "correct_answers": ["resin", "old resin"],
                "incorrect_answers": ["glass"], "category": "stones", "best_answer": "resin",
            }
        ],
        2,
    ),
    "saferlhf": (
        [
            {
                "prompt": "river?", "response_0": "a", "response_1": "b", "is_response_0_safe": s0,
                "is_response_1_safe": s1, "better_response_id": 0, "safer_response_id": 0,
            }
            for s0, s1 in ((True, False), (True, True), (False, True))
        ],
        2,
    ),
    "hh": ([{"chosen": f"{HH} stone", "rejected": f"{HH} glass"}, {"chosen": f"{HH} a", "rejected": "x"}], 1),
    "ultrafeedback": (
        [
            {
                "prompt": "river?", "prompt_id": "1", "score_chosen": 8.0, "score_rejected": 3.0,
                "chosen": [QUESTION, {"role": "assistant", "content": "stone"}],
                "rejected": [QUESTION, {"role": "assistant", "content": "glass"}],
            }
        ],
        1,
    ),
    "helpsteer": (
        [
            {"prompt": prompt, "response": response, "helpfulness": score, "correctness": 3, "coherence": 3}
            for prompt, response, score in (
                ("river?", "glass", 1), ("river?", "stone", 4), ("amber?", "a", 2), ("amber?", "b", 2)
            )
        ],
        1,
    ),
    "rewardbench": (
        [{"prompt": "river?", "chosen": "stone", "rejected": "glass", "subset": "chat", "id": 1}],
        1,
    ),
    "rewardbench2": (
        [
            rewardbench2_row("7", "Math", "river?", ["stone"], ["glass", "paper", "amber"]),
            rewardbench2_row("tied:1", "Ties", "amber?", ["a", "b"], ["c", "d", "e"]),
        ],
        6,
    ),
    "rm-bench": (
        [{"id": "1", "prompt": "river?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}],
        9,
    ),
}  # fmt: skip


def write_raw(folder: Path, rows: list[Any]) -> str:
    file = folder / "raw.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("name", list(PUBLIC_DATASETS))
def test_converts_raw_rows_to_pairs(tmp_path: Path, name: str) -> None:
    rows, expected = RAW_ROWS[name]
    counts = write_public_dataset(name, tmp_path, source=write_raw(tmp_path, rows))
    pairs = [
        pair
        for split in ("train", "test")
        if counts[split]
        for pair in read_pairs(tmp_path / f"{name}_{split}.jsonl")
    ]
    assert len(pairs) == sum(counts.values()) == expected
    assert all(pair.chosen != pair.rejected for pair in pairs)


def test_prefers_the_better_response(tmp_path: Path) -> None:
    def convert(name: str) -> list[Pair]:
        write_public_dataset(name, tmp_path, source=write_raw(tmp_path, RAW_ROWS[name][0]), test_share=1)
        return read_pairs(tmp_path / f"{name}_test.jsonl")

    assert [(p.chosen, p.rejected) for p in convert("saferlhf")] == [("a", "b"), ("b", "a")]
    assert convert("helpsteer")[0].chosen == "stone"
    assert convert("hh")[0].messages == (
        Message("user", "river?"), Message("assistant", "yes?"), Message("user", "which?")
    )  # fmt: skip
    levels = [dict(pair.attributes)["level"] for pair in convert("rm-bench")]
    assert {level: levels.count(level) for level in levels} == {"normal": 3, "hard": 3, "easy": 3}


def test_every_response_of_a_question_is_in_a_pair(tmp_path: Path) -> None:
    write_public_dataset("rewardbench2", tmp_path, source=write_raw(tmp_path, RAW_ROWS["rewardbench2"][0]))
    rows = [json.loads(line) for line in (tmp_path / "rewardbench2_test.jsonl").read_text().splitlines()]
    pairs = [(row["question"], row["chosen"], row["rejected"]) for row in rows]
    assert pairs[:3] == [("7", "stone", rejected) for rejected in ("glass", "paper", "amber")]
    assert pairs[3:] == [("tied:1", *texts) for texts in (("a", "c"), ("b", "d"), ("a", "e"))]
    assert {(row["subset"], row["num_correct"], row["num_incorrect"]) for row in rows} == {
        ("Math", 1, 3), ("Ties", 2, 3),
    }  # fmt: skip


def test_train_and_test_share_no_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"River {i % 50}{'?' * (i % 2)}", "chosen": "a", "rejected": "b", "score": i}
        for i in range(200)
    ]
    counts = write_public_dataset("rewardbench", tmp_path, source=write_raw(tmp_path, rows))
    assert counts == {"train": 0, "test": 200}
    transcripts = [
        {
            "chosen": f"\n\nHuman: {row['prompt']}\n\nAssistant: a",
            "rejected": f"\n\nHuman: {row['prompt']}\n\nAssistant: b",
        }
        for row in rows
    ]
    counts = write_public_dataset("hh", tmp_path, source=write_raw(tmp_path, transcripts), test_share=0.3)
    train, test = (read_pairs(tmp_path / f"hh_{split}.jsonl") for split in ("train", "test"))
    assert min(counts.values()) > 20
    assert {pair.group for pair in train}.isdisjoint({pair.group for pair in test})


def test_rejects_rows_of_another_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are: truthfulqa"):
        write_public_dataset("nonsense", tmp_path)
    with pytest.raises(DataError, match="no row yields a pair"):
        write_public_dataset("hh", tmp_path, source=write_raw(tmp_path, [{"chosen": "a", "rejected": "b"}]))
    short = {"id": "4", "prompt": "river?", "chosen": ["a"], "rejected": ["b", "c", "d"]}
    with pytest.raises(DataError, match="row '4': RM-Bench has 3"):
        write_public_dataset("rm-bench", tmp_path, source=write_raw(tmp_path, [short]))
    with pytest.raises(DataError, match=r"raw.jsonl:1: .*'incorrect_answers'"):
        write_public_dataset("truthfulqa", tmp_path, source=write_raw(tmp_path, [{"chosen": "a"}]))
