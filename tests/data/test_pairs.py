"""Preference data: read strictly, in every form people write it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet

from app.data.pairs import read_chats, read_pairs
from app.errors import DataError
from app.types import Message
from tests.support.paths import EXAMPLE_PAIRS

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
        ({"chosen": "a", "rejected": "b"}, "no 'prompt'"),
        ({**GOOD, "messages": []}, "'messages' must be"),
        ({**GOOD, "prompt": ""}, "'prompt' must be"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "the same turns",
        ),
        ({**GOOD, "chosen": "\n\nHuman: river?\n\nAssistant: a\n\nHuman: b"}, "end with an assistant turn"),
        ({**GOOD, "chosen": "\n\nHuman:\n\nAssistant: a"}, "empty turn"),
        ({**GOOD, "messages": [{"role": "user"}]}, "'content' must be"),
    ],
)
def test_a_bad_row_is_named_by_line(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        read_pairs(write(tmp_path, [GOOD, row]))
    assert str(caught.value).startswith("pairs.jsonl:2:")


def test_every_way_of_writing_a_pair_is_read_alike(tmp_path: Path) -> None:
    before = [{"role": "user", "content": "river?"}]

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    hh = "\n\nHuman: river?\n\nAssistant:"
    forms: list[dict[str, Any]] = [
        GOOD,
        {"messages": before, "chosen": "stone", "rejected": "glass"},
        {"prompt": before, "chosen": turn("stone"), "rejected": turn("glass")},
        {"chosen": [*before, *turn("stone")], "rejected": [*before, *turn("glass")]},
        {"chosen": f"{hh} stone", "rejected": f"{hh} glass"},
        {"prompt": hh, "chosen": "stone", "rejected": "glass"},
    ]
    lines = read_pairs(write(tmp_path, forms))
    parquet.write_table(Table.from_pylist([GOOD]), tmp_path / "pairs.parquet")
    assert {*lines, *read_pairs(tmp_path / "pairs.parquet")} == {lines[0]}


def test_bad_rows_are_skipped_only_if_somebody_hears_of_them(tmp_path: Path) -> None:
    file = write(tmp_path, [GOOD, "{\n", {**GOOD, "chosen": "b"}])
    heard: list[DataError] = []
    assert len(read_pairs(file, heard.append)) == 2
    assert str(heard[0]).startswith("pairs.jsonl:2: not JSON")


def test_a_pair_is_two_chats(tmp_path: Path) -> None:
    assert [chat.response for chat in read_chats(write(tmp_path, [GOOD]))] == ["stone", "glass"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_chats_end_with_the_last_assistant_turn(tmp_path: Path) -> None:
    turn = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    file = tmp_path / "chats.jsonl.gz"
    lonely = json.dumps({"messages": turn[:1]})
    file.write_bytes(gzip.compress((json.dumps({"messages": turn}) + "\n" + lonely).encode()))
    (one,) = read_chats(file)
    assert (one.messages, one.response) == ((Message("user", "user"),), "assistant")


def test_the_example_pairs_are_good() -> None:
    pairs = read_pairs(EXAMPLE_PAIRS)
    assert len(pairs) == len({pair.group for pair in pairs}) == 48
