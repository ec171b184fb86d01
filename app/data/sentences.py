"""Splits texts into sentences without losing a character."""

import re
from itertools import pairwise

BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+(?=\S)|(?<=[。！？])(?=\S)")
"""White space after a sentence, the end of a line, or the end of a Chinese or Japanese sentence."""


def split_sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text with the white space after them; joined, they are the text."""
    starts = [0, *(match.end() for match in BOUNDARY.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(starts) if start < end]
