"""Every public set's raw schema, small, becomes pairs that read back; prompts stay on one side."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.data.pairs import read_pairs
from app.data.public_datasets import SETS, write
from app.errors import DataError
from app.types import Message

HH = "\n\nHuman: river?\n\nAssistant: yes?\n\nHuman: which?\n\nAssistant:"
ASKED = {"role": "user", "content": "river?"}
RAW: dict[str, tuple[list[dict[str, Any]], int]] = {
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
                "chosen": [ASKED, {"role": "assistant", "content": "stone"}],
                "rejected": [ASKED, {"role": "assistant", "content": "glass"}],
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
    "rm-bench": (
        [{"id": "1", "prompt": "river?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}],
        9,
    ),
}  # fmt: skip


def raw(folder: Path, rows: list[Any]) -> str:
    file = folder / "raw.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("name", list(SETS))
def test_a_raw_schema_becomes_pairs(tmp_path: Path, name: str) -> None:
    rows, expected = RAW[name]
    counts = write(name, tmp_path, source=raw(tmp_path, rows))
    read = [
        pair
        for part in ("train", "test")
        if counts[part]
        for pair in read_pairs(tmp_path / f"{name}_{part}.jsonl")
    ]
    assert len(read) == sum(counts.values()) == expected
    assert all(pair.chosen != pair.rejected for pair in read)


def test_the_better_side_is_chosen(tmp_path: Path) -> None:
    def one(name: str) -> Any:
        write(name, tmp_path, source=raw(tmp_path, RAW[name][0]), test_share=1)
        return read_pairs(tmp_path / f"{name}_test.jsonl")

    assert [(p.chosen, p.rejected) for p in one("saferlhf")] == [("a", "b"), ("b", "a")]
    assert one("helpsteer")[0].chosen == "stone"
    assert one("hh")[0].messages == (
        Message("user", "river?"), Message("assistant", "yes?"), Message("user", "which?")
    )  # fmt: skip
    levels = [dict(pair.facts)["level"] for pair in one("rm-bench")]
    assert {level: levels.count(level) for level in levels} == {"normal": 3, "hard": 3, "easy": 3}


def test_prompts_stay_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"River {i % 50}{'?' * (i % 2)}", "chosen": "a", "rejected": "b", "score": i}
        for i in range(200)
    ]
    counts = write("rewardbench", tmp_path, source=raw(tmp_path, rows))
    assert counts == {"train": 0, "test": 200}
    transcripts = [
        {
            "chosen": f"\n\nHuman: {r['prompt']}\n\nAssistant: a",
            "rejected": f"\n\nHuman: {r['prompt']}\n\nAssistant: b",
        }
        for r in rows
    ]
    counts = write("hh", tmp_path, source=raw(tmp_path, transcripts), test_share=0.3)
    train, test = (read_pairs(tmp_path / f"hh_{part}.jsonl") for part in ("train", "test"))
    assert min(counts.values()) > 20
    assert {pair.group for pair in train}.isdisjoint({pair.group for pair in test})


def test_what_is_not_this_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are: truthfulqa"):
        write("nonsense", tmp_path)
    with pytest.raises(DataError, match="no row of this set's form"):
        write("hh", tmp_path, source=raw(tmp_path, [{"chosen": "a", "rejected": "b"}]))
    with pytest.raises(DataError, match=r"raw.jsonl:1: .*'incorrect_answers'"):
        write("truthfulqa", tmp_path, source=raw(tmp_path, [{"chosen": "a"}]))
