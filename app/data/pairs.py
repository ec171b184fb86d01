"""Reading of preference pairs, items, prompts and chats from JSONL, parquet and the Hugging Face hub.

Rows are streamed from JSONL (plain or .gz), parquet, or a hub data set. Prompts and responses may be plain
strings, lists of messages or HH-style transcripts. An invalid row raises DataError with file and line, or is
passed to `on_bad_row` if that is given. No row is skipped silently.
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

PARQUET_BATCH_ROWS = 256
GROUP_KEYS = ("group", "qid")
TEXT_KEYS = ("prompt", "messages", "chosen", "rejected")
CONDITION = re.compile(r"(\w+)(=|>=|<=)(.+)")
HUB_SOURCE = re.compile(r"hub:([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.-]+))?(?:#([\w.-]+))?")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
Row = Mapping[str, Any]
BadRowHandler = Callable[[DataError], None]


def read_pairs(source: str | Path, on_bad_row: BadRowHandler | None = None) -> list[Pair]:
    """Return all pairs of a file or hub data set. Invalid rows raise DataError or go to `on_bad_row`."""
    pairs: list[Pair] = []
    for location, row in iter_rows(source):
        try:
            pairs.append(parse_pair(parse_row(row, location), location))
        except DataError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
    return pairs


def read_prompts(source: str | Path, on_bad_row: BadRowHandler | None = None) -> list[tuple[Message, ...]]:
    """Return all distinct prompts, in order; of rows that are pairs, the prompt of the pair."""
    prompts: dict[tuple[Message, ...], None] = {}
    for location, row in iter_rows(source):
        try:
            parsed = parse_row(row, location)
            prompts[_parse_prompt(parsed, location) or parse_pair(parsed, location).messages] = None
        except DataError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
    return list(prompts)


def read_chats(source: str | Path) -> Iterator[Item]:
    """Yield each chat as an item that ends with its last assistant turn; a row that is a pair yields two."""
    for location, raw in iter_rows(source):
        row = parse_row(raw, location)
        if "chosen" in row:
            yield from parse_pair(row, location).items
            continue
        messages = _parse_messages(row.get("messages"), "messages", location)
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]
        if len(messages) > 1 and messages[-1].content:
            yield Item(messages[:-1], messages[-1].content)


def parse_pair(row: Row, location: str) -> Pair:
    """Parse a row as a preference pair."""
    prompt = _parse_prompt(row, location)
    chosen, rejected = (_parse_response(row, key, location) for key in ("chosen", "rejected"))
    if not prompt:
        prompt = chosen[:-1]
        if not prompt or prompt != rejected[:-1]:
            raise DataError(
                f"{location}: no 'prompt', and chosen and rejected do not begin with the same turns"
            )
    if chosen[-1] == rejected[-1]:
        raise DataError(f"{location}: chosen and rejected are the same text")
    group = next((str(row[key]) for key in GROUP_KEYS if row.get(key) is not None), None)
    attributes = tuple(
        (key, str(value))
        for key, value in row.items()
        if key not in TEXT_KEYS and isinstance(value, str | int | float)
    )
    return Pair(prompt, chosen[-1].content, rejected[-1].content, group or prompt[-1].content, attributes)


def parse_item(row: Row, location: str) -> Item:
    """Parse a row as an item: a prompt and a response in separate fields, or messages that end with both."""
    if row.get("response") is None:
        has_messages = row.get("messages") is not None
        messages = _parse_messages(row["messages"], "messages", location) if has_messages else ()
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError(f"{location}: no 'response', and no 'messages' that end with an assistant turn")
        return Item(messages[:-1], messages[-1].content)
    response = _parse_response(row, "response", location)
    prompt = _parse_prompt(row, location) or response[:-1]
    if not prompt:
        raise DataError(f"{location}: no 'prompt' or 'messages' before the response")
    return Item(prompt, response[-1].content)


def parse_candidate_items(row: Row, location: str) -> tuple[Item, ...]:
    """Parse a row with one prompt and several responses as one item per response."""
    prompt, responses = _parse_prompt(row, location), row.get("responses")
    if not prompt:
        raise DataError(f"{location}: no 'prompt' or 'messages'")
    if not isinstance(responses, list) or not responses:
        raise DataError(f"{location}: 'responses' must be a list of responses")
    parsed = [_parse_response({"responses": response}, "responses", location) for response in responses]
    return tuple(Item(prompt, turns[-1].content) for turns in parsed)


def match_condition(pairs: list[Pair], condition: str) -> list[bool]:
    """Return for each pair whether it meets a condition such as kind=generated or support>=2."""
    match = CONDITION.fullmatch(condition)
    if not match:
        raise DataError(f"{condition!r} is not a condition; write key=value, key>=number or key<=number")
    key, operator, operand = match.groups()
    return [_condition_holds(dict(pair.attributes).get(key), operator, operand) for pair in pairs]


def hash_to_unit_interval(key: str) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def source_sha256(source: str | Path) -> str:
    """Return the digest of a file's content, or of the name and revision of a hub data set."""
    path = Path(source)
    if not path.is_file():
        return hashlib.sha256(str(source).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def iter_rows(source: str | Path) -> Iterator[tuple[str, bytes | Row]]:
    """Yield (location, raw row) for each row, without loading the whole source into memory."""
    match = HUB_SOURCE.fullmatch(str(source))
    if match:
        yield from _iter_hub_rows(*match.groups())
    elif (path := _check_file(source)).suffix == ".parquet":
        yield from _iter_parquet_rows(path)
    else:
        yield from _iter_lines(path)


def read_json_lines(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a file of JSON lines with their locations; blank lines are skipped.

    Lines end with a line break only: texts may contain other characters that end a line.
    """
    for location, line in _iter_lines(file):
        if line.strip():
            yield location, parse_row(line, location)


def get_source_size(source: str | Path) -> int | None:
    """Return the bytes of a JSONL file or the rows of a parquet file; None if neither is known in advance."""
    if HUB_SOURCE.fullmatch(str(source)) or (path := _check_file(source)).suffix == ".gz":
        return None
    return _open_parquet(path).metadata.num_rows if path.suffix == ".parquet" else path.stat().st_size


def parse_row(row: bytes | Row, location: str) -> Row:
    """Parse a raw row as a JSON object."""
    if not isinstance(row, bytes):
        return row
    try:
        parsed = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{location}: a row must be an object")
    return parsed


def _check_file(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no file {path}; a hub data set is named hub:ORG/NAME (:CONFIG, @REVISION, #SPLIT)")
    return path


def _iter_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path.name}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _iter_parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException

    try:
        batches = _open_parquet(path).iter_batches(PARQUET_BATCH_ROWS)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path.name}:{number}", row
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _open_parquet(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _iter_hub_rows(
    name: str, config: str | None, revision: str | None, split: str | None
) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    split = split or "train"
    try:
        dataset = load_dataset(name, config, split=split, revision=revision, streaming=True)
        for number, row in enumerate(dataset, 1):
            yield f"{name}#{split}:{number}", row
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"cannot read {name} from the hub: {reason}") from error


def _condition_holds(value: str | None, operator: str, operand: str) -> bool:
    if value is None or operator == "=":
        return value == operand
    try:
        return float(value) >= float(operand) if operator == ">=" else float(value) <= float(operand)
    except ValueError as error:
        raise DataError(f"cannot compare {value!r} with {operand!r}: both must be numbers") from error


def _parse_prompt(row: Row, location: str) -> tuple[Message, ...]:
    """Parse the turns before the response; empty if chosen and rejected contain them."""
    key = next((key for key in ("messages", "prompt") if row.get(key) is not None), None)
    if key is None:
        return ()
    return _parse_turns(row[key], key, location, default_role="user")


def _parse_response(row: Row, key: str, location: str) -> tuple[Message, ...]:
    """Parse a response, or a conversation that ends with it; the last turn is the response."""
    turns = _parse_turns(row.get(key), key, location, default_role="assistant")
    if turns[-1].role != "assistant":
        raise DataError(f"{location}: {key!r} must end with an assistant turn")
    return turns


def _parse_turns(value: Any, key: str, location: str, *, default_role: str) -> tuple[Message, ...]:
    """Parse text, an HH-style transcript or a list of messages."""
    if isinstance(value, str) and HH_TURN.match(value):
        return _parse_transcript(value, key, location)
    if isinstance(value, str) and value:
        return (Message(default_role, value),)
    return _parse_messages(value, key, location)


def _parse_transcript(text: str, key: str, location: str) -> tuple[Message, ...]:
    """Parse an HH-style dialogue; an empty last assistant turn only marks the response and is dropped."""
    _, *parts = HH_TURN.split(text)
    turns = [
        Message(HH_ROLES[speaker], content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    if not turns or not all(turn.content for turn in turns):
        raise DataError(f"{location}: {key!r} contains an empty turn")
    return tuple(turns)


def _parse_messages(turns: Any, key: str, location: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{location}: {key!r} must be a non-empty string or a list of messages")
    return tuple(
        Message(_get_text(turn, "role", location), _get_text(turn, "content", location)) for turn in turns
    )


def _get_text(row: Row, key: str, location: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{location}: {key!r} must be a non-empty string")
    return value
