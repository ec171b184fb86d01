"""Pairs that repeat or contradict each other, and prompts that are in two files."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from app.types import Pair

WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Numbers of pairs: groups of repeated ones, contradicting ones, and those with prompts of another file.

    Texts are compared without case, punctuation and white space.
    """

    repeated: tuple[tuple[int, ...], ...]
    contradicting: tuple[tuple[int, ...], ...]
    same_responses: tuple[int, ...]
    shared_prompts: tuple[int, ...]


def find_duplicates(pairs: Sequence[Pair], others: Sequence[Pair] = ()) -> Duplicates:
    """Return the duplicates among pairs, and which of their prompts are also in `others`."""
    by_texts: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    by_unordered: dict[tuple[str, ...], set[tuple[str, str, str]]] = defaultdict(set)
    for index, pair in enumerate(pairs):
        key = (_prompt(pair), normalise(pair.chosen), normalise(pair.rejected))
        by_texts[key].append(index)
        by_unordered[key[0], *sorted(key[1:])].add(key)
    repeated = tuple(tuple(rows) for rows in by_texts.values() if len(rows) > 1)
    contradicting = tuple(
        tuple(sorted(row for key in keys for row in by_texts[key]))
        for keys in by_unordered.values()
        if len(keys) > 1
    )
    same = tuple(row for key, rows in by_texts.items() if key[1] == key[2] for row in rows)
    prompts = {_prompt(pair) for pair in others}
    shared = tuple(index for index, pair in enumerate(pairs) if _prompt(pair) in prompts)
    return Duplicates(repeated, contradicting, same, shared)


def normalise(text: str) -> str:
    """Return the words of a text in lower case, so that near-identical texts are equal."""
    return " ".join(WORDS.findall(text.casefold()))


def _prompt(pair: Pair) -> str:
    return " | ".join(normalise(message.content) for message in pair.messages)
