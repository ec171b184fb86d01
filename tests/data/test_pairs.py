"""Reading of preference data: strict validation, and every supported form of a row."""

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


def test_reads_prompts_and_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "river?"}]
    with_messages = {"messages": turns, "chosen": "a", "rejected": "b", "qid": 7}
    first, second = read_pairs(write(tmp_path, [GOOD, with_messages]))
    assert first.messages == (Message("user", "river?"),)
    assert first.group == "river?"
    assert second.messages[0] == Message("system", "be kind")
    assert second.group == "7"


@pytest.mark.parametrize(
    ("row", "message"),
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
def test_error_of_an_invalid_row_names_its_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(write(tmp_path, [GOOD, row]))
    assert str(caught.value).startswith("pairs.jsonl:2:")


def test_all_forms_of_a_pair_are_equivalent(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "river?"}]

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    hh = "\n\nHuman: river?\n\nAssistant:"
    forms: list[dict[str, Any]] = [
        GOOD,
        {"messages": prompt, "chosen": "stone", "rejected": "glass"},
        {"prompt": prompt, "chosen": turn("stone"), "rejected": turn("glass")},
        {"chosen": [*prompt, *turn("stone")], "rejected": [*prompt, *turn("glass")]},
        {"chosen": f"{hh} stone", "rejected": f"{hh} glass"},
        {"prompt": hh, "chosen": "stone", "rejected": "glass"},
    ]
    pairs = read_pairs(write(tmp_path, forms))
    parquet.write_table(Table.from_pylist([GOOD]), tmp_path / "pairs.parquet")
    assert {*pairs, *read_pairs(tmp_path / "pairs.parquet")} == {pairs[0]}


def test_invalid_rows_are_skipped_only_with_a_handler(tmp_path: Path) -> None:
    file = write(tmp_path, [GOOD, "{\n", {**GOOD, "chosen": "b"}])
    errors: list[DataError] = []
    assert len(read_pairs(file, errors.append)) == 2
    assert str(errors[0]).startswith("pairs.jsonl:2: not JSON")


def test_a_pair_is_read_as_two_chats(tmp_path: Path) -> None:
    assert [chat.response for chat in read_chats(write(tmp_path, [GOOD]))] == ["stone", "glass"]


def test_rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_chats_end_with_the_last_assistant_turn(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    file = tmp_path / "chats.jsonl.gz"
    unanswered = json.dumps({"messages": turns[:1]})
    file.write_bytes(gzip.compress((json.dumps({"messages": turns}) + "\n" + unanswered).encode()))
    (chat,) = read_chats(file)
    assert (chat.messages, chat.response) == ((Message("user", "user"),), "assistant")


def test_the_example_pairs_are_valid() -> None:
    pairs = read_pairs(EXAMPLE_PAIRS)
    assert len(pairs) == len({pair.group for pair in pairs}) == 48
