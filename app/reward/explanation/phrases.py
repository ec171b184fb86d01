"""Phrases of a response: groups of its tokens that form words, and the phrase with the most credit."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.scores import DoubleArray

MAX_PHRASE_WORDS = 6
"""Words of a phrase: enough to see what they say, few enough for a sentence."""
MAX_PHRASE_CHARACTERS = 60


class TokenSpan(NamedTuple):
    """Tokens [start, end)."""

    start: int
    end: int


def split_words(texts: Sequence[str]) -> list[TokenSpan]:
    """Return the words that tokens form; a word starts at a token that begins with white space.

    White space itself belongs to the word before it. A token with other characters than ASCII starts a word.
    """
    starts = [i for i, text in enumerate(texts) if i == 0 or _starts_word(texts[i - 1], text)]
    return [TokenSpan(start, end) for start, end in zip(starts, [*starts[1:], len(texts)], strict=False)]


def find_phrase(
    words: Sequence[TokenSpan], token_credits: DoubleArray, *, max_words: int = MAX_PHRASE_WORDS
) -> TokenSpan | None:
    """Return the consecutive words, at most `max_words`, whose tokens have the largest sum of credits.

    `token_credits` (T,) are counted above their mean, so that a phrase does not grow by words that say no
    more than the others; the only word of a response is its phrase. None without words.
    """
    if not words:
        return None
    sums = np.concatenate([[0.0], np.cumsum(token_credits - token_credits.mean())])
    at_edges = sums[[words[0].start, *(word.end for word in words)]]
    best = [at_edges[n:] - at_edges[:-n] for n in range(1, min(max_words, len(words)) + 1)]
    length = int(np.argmax([differences.max() for differences in best]))
    first = int(best[length].argmax())
    return TokenSpan(words[first].start, words[first + length].end)


def quote(texts: Sequence[str], phrase: TokenSpan) -> str:
    """Return the text of a phrase on one line, cut after MAX_PHRASE_CHARACTERS."""
    text = " ".join("".join(texts[phrase.start : phrase.end]).split())
    return text if len(text) <= MAX_PHRASE_CHARACTERS else f"{text[: MAX_PHRASE_CHARACTERS - 1]}…"


def _starts_word(before: str, text: str) -> bool:
    """Return whether a token starts a word, after the token `before`."""
    is_space = not text.strip()
    return not is_space and (text[0].isspace() or before[-1:].isspace() or not text.isascii())
