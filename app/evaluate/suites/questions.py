"""Questions of a benchmark: one prompt with several correct and incorrect responses.

They are read from rows as the benchmark's authors released them, or from the pairs that `sparserm data` makes
of those rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from app.data.pairs import BadRowHandler, Row, iter_rows, parse_candidate_items, parse_row
from app.errors import DataError
from app.types import Item

LocatedRow = tuple[str, Row]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with the responses that count as correct and those that do not.

    Questions with the same `group` share a prompt: bootstrap samples contain all of them or none.
    """

    id: str
    subset: str
    group: str
    chosen: tuple[Item, ...]
    rejected: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All responses, the correct ones first."""
        return self.chosen + self.rejected


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Reward and number of response tokens of each item."""

    rewards: Mapping[Item, float]
    token_counts: Mapping[Item, int]


def read_questions(source: str, subset_key: str, on_bad_row: BadRowHandler | None = None) -> list[Question]:
    """Return the questions of a file or hub data set; `subset_key` is the field with a question's subset.

    A row or question that cannot be read raises DataError or goes to `on_bad_row`.
    """
    questions: list[Question] = []
    for _, rows in groupby(_iter_rows_of_questions(source, on_bad_row), key=itemgetter(0)):
        try:
            questions.append(_build_question([located_row for _, located_row in rows], subset_key))
        except DataError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
    return questions


def take_first(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return the questions of the first `limit` prompts of each subset; 0 returns all."""
    groups: dict[str, dict[str, None]] = {}
    for question in questions:
        groups.setdefault(question.subset, {})[question.group] = None
    kept = {subset: set(list(names)[: limit or None]) for subset, names in groups.items()}
    return [question for question in questions if question.group in kept[question.subset]]


def split_by_subset(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Return the questions of each subset, in order of first occurrence."""
    subsets: dict[str, list[Question]] = {}
    for question in questions:
        subsets.setdefault(question.subset, []).append(question)
    return subsets


def _iter_rows_of_questions(
    source: str, on_bad_row: BadRowHandler | None
) -> Iterator[tuple[str, LocatedRow]]:
    """Yield each row that can be parsed, with the name of its question."""
    for location, raw in iter_rows(source):
        try:
            row = parse_row(raw, location)
            name = _find_question(row, location)
        except DataError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
        else:
            yield name, (location, row)


def _find_question(row: Row, location: str) -> str:
    """Return the name of a row's question; a released row is a question of its own, named by its location."""
    if isinstance(row.get("chosen"), list):
        return location
    if row.get("question") is None:
        raise DataError(
            f"{location}: no 'question'; a suite reads the released rows, or pairs that `sparserm data` wrote"
        )
    return str(row["question"])


def _build_question(rows: list[LocatedRow], subset_key: str) -> Question:
    """Build a question from its released row or from its pairs."""
    location, first = rows[0]
    if isinstance(first.get("chosen"), list):
        chosen, rejected, name = first["chosen"], first.get("rejected") or [], first.get("id")
    else:
        chosen, rejected = (list(_collect_responses(rows, side)) for side in ("chosen", "rejected"))
        name = first["question"]
    if not chosen or not rejected or not first.get(subset_key):
        raise DataError(f"{location}: a question needs chosen and rejected responses and {subset_key!r}")
    candidates = {"prompt": first.get("prompt"), "responses": [*chosen, *rejected]}
    items = parse_candidate_items(candidates, location)
    prompt = items[0].messages[-1].content
    return Question(str(name), str(first[subset_key]), prompt, items[: len(chosen)], items[len(chosen) :])


def _collect_responses(rows: list[LocatedRow], side: str) -> Iterator[object]:
    """Yield the responses of one side of a question's pairs, each once, in their order."""
    location, first = rows[0]
    responses = {row.get(f"{side}_index"): row.get(side) for _, row in rows}
    expected = first.get("num_correct" if side == "chosen" else "num_incorrect")
    if not isinstance(expected, int) or set(responses) != set(range(expected)):
        raise DataError(
            f"{location}: question {first['question']!r} lacks some of its {side} responses; "
            "its pairs must all be in the file, one after the other"
        )
    yield from (responses[index] for index in range(expected))
