"""Preference pairs, exchanges and chats: read, validated, grouped by prompt.

Rows come one by one from JSONL (plain or .gz), parquet, or a hub data set, and may be plain strings, message
lists or HH-style transcripts. A bad row raises DataError with file and line, or goes to `bad` if one is
given: nothing is skipped silently.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import DataError
from app.types import Item, Message, Pair

ROWS_AT_ONCE = 256
GROUP_KEYS = ("group", "qid")
SPOKEN = ("prompt", "messages", "chosen", "rejected")
FACT = re.compile(r"(\w+)(=|>=|<=)(.+)")
HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.-]+))?(?:#([\w.-]+))?")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
Row = Mapping[str, Any]
Bad = Callable[[DataError], None]


def read_pairs(source: str | Path, bad: Bad | None = None) -> list[Pair]:
    """Every pair of a file or hub data set; those that cannot be read raise, or go to `bad`."""
    pairs: list[Pair] = []
    for place, row in rows(source):
        try:
            pairs.append(pair(parsed(row, place), place))
        except DataError as error:
            if bad is None:
                raise
            bad(error)
    return pairs


def read_prompts(source: str | Path, bad: Bad | None = None) -> list[tuple[Message, ...]]:
    """Every conversation that waits for a response, once; of rows that are pairs, what comes before."""
    found: dict[tuple[Message, ...], None] = {}
    for place, row in rows(source):
        try:
            known = parsed(row, place)
            found[_prompt(known, place) or pair(known, place).messages] = None
        except DataError as error:
            if bad is None:
                raise
            bad(error)
    return list(found)


def read_chats(source: str | Path) -> Iterator[Item]:
    """Every conversation up to its last assistant turn; both sides of a row that is a pair."""
    for place, raw in rows(source):
        row = parsed(raw, place)
        if "chosen" in row:
            yield from pair(row, place).items
            continue
        messages = _messages(row.get("messages"), "messages", place)
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]
        if len(messages) > 1 and messages[-1].content:
            yield Item(messages[:-1], messages[-1].content)


def pair(row: Row, place: str) -> Pair:
    """The pair a row holds."""
    prompt = _prompt(row, place)
    chosen, rejected = (_side(row, key, place) for key in ("chosen", "rejected"))
    if not prompt:
        prompt = chosen[:-1]
        if not prompt or prompt != rejected[:-1]:
            raise DataError(f"{place}: no 'prompt', and chosen and rejected do not begin with the same turns")
    if chosen[-1] == rejected[-1]:
        raise DataError(f"{place}: chosen and rejected are the same text")
    named = next((str(row[key]) for key in GROUP_KEYS if row.get(key) is not None), None)
    facts = tuple((k, str(v)) for k, v in row.items() if k not in SPOKEN and isinstance(v, str | int | float))
    return Pair(prompt, chosen[-1].content, rejected[-1].content, named or prompt[-1].content, facts)


def exchange(row: Row, place: str) -> Item:
    """The exchange a row holds: a response and what stands before it, in fields apart or in one."""
    if row.get("response") is None:
        messages = _messages(row["messages"], "messages", place) if row.get("messages") is not None else ()
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError(f"{place}: no 'response', and no 'messages' that end with an assistant turn")
        return Item(messages[:-1], messages[-1].content)
    response = _side(row, "response", place)
    prompt = _prompt(row, place) or response[:-1]
    if not prompt:
        raise DataError(f"{place}: no 'prompt' or 'messages' before the response")
    return Item(prompt, response[-1].content)


def choices(row: Row, place: str) -> tuple[Item, ...]:
    """The exchanges a row holds: one prompt with several responses."""
    prompt, responses = _prompt(row, place), row.get("responses")
    if not prompt:
        raise DataError(f"{place}: no 'prompt' or 'messages'")
    if not isinstance(responses, list) or not responses:
        raise DataError(f"{place}: 'responses' must be a list of responses")
    sides = [_side({"responses": one}, "responses", place) for one in responses]
    return tuple(Item(prompt, side[-1].content) for side in sides)


def having(pairs: list[Pair], fact: str) -> list[bool]:
    """Which pairs a fact such as kind=generated or support>=2 holds of."""
    found = FACT.fullmatch(fact)
    if not found:
        raise DataError(f"{fact!r} is no condition; write key=value, key>=number or key<=number")
    key, how, wanted = found.groups()
    return [_holds(dict(pair.attributes).get(key), how, wanted) for pair in pairs]


def chance(key: str) -> float:
    """A number in [0, 1) that only depends on the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def source_sha256(source: str | Path) -> str:
    """Digest of a file, or of a hub data set's name and revision."""
    path = Path(source)
    if not path.is_file():
        return hashlib.sha256(str(source).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def rows(source: str | Path) -> Iterator[tuple[str, bytes | Row]]:
    """Each row, as it stands, and where it stands; few are held at a time."""
    hub = HUB.fullmatch(str(source))
    if hub:
        yield from _hub_rows(*hub.groups())
    elif (path := _file(source)).suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        yield from _lines(path)


def extent(source: str | Path) -> int | None:
    """How much there is to read: bytes of a JSONL file, rows of a parquet one; None if that is not known."""
    if HUB.fullmatch(str(source)) or (path := _file(source)).suffix == ".gz":
        return None
    return _parquet(path).metadata.num_rows if path.suffix == ".parquet" else path.stat().st_size


def parsed(row: bytes | Row, place: str) -> Row:
    """A row as an object."""
    if not isinstance(row, bytes):
        return row
    try:
        found = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{place}: a row must be an object")
    return found


def _file(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no file {path}; a hub data set is named hub:ORG/NAME (:CONFIG, @REVISION, #SPLIT)")
    return path


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path.name}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException

    try:
        batches = _parquet(path).iter_batches(ROWS_AT_ONCE)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path.name}:{number}", row
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _parquet(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _hub_rows(
    name: str, config: str | None, revision: str | None, split: str | None
) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    part = split or "train"
    try:
        found = load_dataset(name, config, split=part, revision=revision, streaming=True)
        for number, row in enumerate(found, 1):
            yield f"{name}#{part}:{number}", row
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"cannot read {name} from the hub: {reason}") from error


def _holds(value: str | None, how: str, wanted: str) -> bool:
    if value is None or how == "=":
        return value == wanted
    try:
        return float(value) >= float(wanted) if how == ">=" else float(value) <= float(wanted)
    except ValueError as error:
        raise DataError(f"cannot compare {value!r} with {wanted!r}: not both are numbers") from error


def _prompt(row: Row, place: str) -> tuple[Message, ...]:
    """The conversation before the response; empty where chosen and rejected carry it themselves."""
    key = next((key for key in ("messages", "prompt") if row.get(key) is not None), None)
    if key is None:
        return ()
    return _turns(row[key], key, place, speaker="user")


def _side(row: Row, key: str, place: str) -> tuple[Message, ...]:
    """A response, or a conversation that ends with it."""
    turns = _turns(row.get(key), key, place, speaker="assistant")
    if turns[-1].role != "assistant":
        raise DataError(f"{place}: {key!r} must end with an assistant turn")
    return turns


def _turns(value: Any, key: str, place: str, *, speaker: str) -> tuple[Message, ...]:
    """Text, a transcript or messages, as messages."""
    if isinstance(value, str) and TURN.match(value):
        return _transcript(value, key, place)
    if isinstance(value, str) and value:
        return (Message(speaker, value),)
    return _messages(value, key, place)


def _transcript(text: str, key: str, place: str) -> tuple[Message, ...]:
    """An HH-style dialogue; an empty last assistant turn is where the response goes."""
    _, *parts = TURN.split(text)
    turns = [Message(ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    if not turns or not all(turn.content for turn in turns):
        raise DataError(f"{place}: {key!r} holds an empty turn")
    return tuple(turns)


def _messages(turns: Any, key: str, place: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{place}: {key!r} must be a non-empty string or a list of messages")
    return tuple(Message(_text(t, "role", place), _text(t, "content", place)) for t in turns)


def _text(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{place}: {key!r} must be a non-empty string")
    return value
