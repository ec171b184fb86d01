"""Preference data: read strictly, split so that no prompt stands on both sides."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import DataError
from app.pairs import read_chats, read_pairs, split
from app.types import Message

GOOD = {"prompt": "river?", "chosen": "stone", "rejected": "glass"}


def write(folder: Path, rows: list[Any], name: str = "pairs.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def test_prompts_and_messages_are_both_read(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "river?"}]
    spoken = {"messages": turns, "chosen": "a", "rejected": "b", "qid": 7}
    one, two = read_pairs(write(tmp_path, [GOOD, spoken]))
    assert one.messages == (Message("user", "river?"),)
    assert one.group == "river?"
    assert two.messages[0] == Message("system", "be kind")
    assert two.group == "7"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{\n", "not JSON"),
        ("[]\n", "must be an object"),
        ({**GOOD, "chosen": ""}, "'chosen' must be"),
        ({**GOOD, "rejected": 3}, "'rejected' must be"),
        ({**GOOD, "rejected": "stone"}, "the same text"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' must be"),
        ({**GOOD, "messages": []}, "non-empty list"),
        ({**GOOD, "messages": [{"role": "user"}]}, "'content' must be"),
    ],
)
def test_a_bad_row_is_named_by_line(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        read_pairs(write(tmp_path, [GOOD, row]))
    assert str(caught.value).startswith("pairs.jsonl:2:")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_chats_end_with_the_last_assistant_turn(tmp_path: Path) -> None:
    turn = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    file = tmp_path / "chats.jsonl.gz"
    lonely = json.dumps({"messages": turn[:1]})
    file.write_bytes(gzip.compress((json.dumps({"messages": turn}) + "\n" + lonely).encode()))
    (one,) = read_chats(file)
    assert (one.messages, one.response) == ((Message("user", "user"),), "assistant")


def test_a_split_shares_no_prompt(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"q{i % 40}", "chosen": f"c{i}"} for i in range(200)]
    kept, held = split(read_pairs(write(tmp_path, rows)), 0.25)
    assert len(kept) + len(held) == 200
    assert 0.05 < len(held) / 200 < 0.5
    assert {p.group for p in kept}.isdisjoint({p.group for p in held})
