"""Preference pairs and chats from JSONL (plain or .gz): read, validate, split by prompt group.

A bad row raises DataError with file and line; nothing is skipped silently.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import DataError
from app.types import Exchange, Message, Pair

GROUP_KEYS = ("group", "qid")


def read_pairs(path: Path) -> list[Pair]:
    """Every pair of a file with `chosen`, `rejected` and `messages` or `prompt`."""
    return [_pair(row, place) for place, row in _rows(path)]


def read_chats(path: Path) -> Iterator[Exchange]:
    """Every conversation of a file with `messages`, up to its last assistant turn."""
    for place, row in _rows(path):
        messages = _messages(row, place)
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]
        if len(messages) > 1 and messages[-1].content:
            yield Exchange(messages[:-1], messages[-1].content)


def split(pairs: list[Pair], share: float, *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Two lists that share no prompt group; the second holds about `share` of the groups."""
    held = {pair.group for pair in pairs if _chance(f"{seed}/{pair.group}") < share}
    return [p for p in pairs if p.group not in held], [p for p in pairs if p.group in held]


def file_sha256(path: Path) -> str:
    """Digest by which a bundle names the data it was trained on."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path.name}:{number}", _row(line, f"{path.name}:{number}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be an object")
    return row


def _pair(row: Mapping[str, Any], place: str) -> Pair:
    messages = _messages(row, place)
    chosen, rejected = (_text(row, key, place) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{place}: chosen and rejected are the same text")
    named = next((str(row[key]) for key in GROUP_KEYS if key in row), None)
    return Pair(messages, chosen, rejected, named or messages[-1].content)


def _messages(row: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    if "messages" not in row:
        return (Message("user", _text(row, "prompt", place)),)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{place}: messages must be a non-empty list of objects")
    return tuple(Message(_text(t, "role", place), _text(t, "content", place)) for t in turns)


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{place}: {key!r} must be a non-empty string")
    return value


def _chance(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
