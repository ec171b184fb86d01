"""Rewrites of a rejected response as a whole that raise a reward without improving the response."""

from collections.abc import Callable, Sequence
from random import Random

from app.train.augmentation import wordings

ResponseRewrite = Callable[[str, str, Sequence[str], Random], str]
"""Takes the prompt, the rejected response, words of the chosen response and a random generator."""


def repeat_answer(_prompt: str, answer: str, _words: Sequence[str], rng: Random) -> str:
    """Repeat the answer two to four times."""
    return rng.choice((" ", "\n", "\n\n")).join([answer] * rng.randint(2, 4))


def append_keywords(_prompt: str, answer: str, words: Sequence[str], rng: Random) -> str:
    """Append words of the chosen response in random order."""
    return f"{answer} {' '.join(rng.choices(words, k=rng.randint(8, 30)))}"


def format_as_document(_prompt: str, answer: str, _words: Sequence[str], rng: Random) -> str:
    """Put the answer into the layout of a document."""
    return rng.choice(wordings.LAYOUTS).format(answer)


def repeat_prompt(prompt: str, answer: str, _words: Sequence[str], rng: Random) -> str:
    """Repeat the prompt beside the answer or instead of it."""
    return rng.choice(
        (f"You asked: {prompt}\n\n{answer}", f"{prompt}\n{answer}", f"{answer} {prompt}", prompt)
    )


def replace_with_blank(_prompt: str, _answer: str, _words: Sequence[str], rng: Random) -> str:
    """Replace the answer with almost nothing."""
    return rng.choice(("\n", " ", ".", "...", "-", "\n\n", "OK.", "Yes.", "?"))


REWRITES: tuple[ResponseRewrite, ...] = (
    repeat_answer, append_keywords, format_as_document, repeat_prompt, replace_with_blank,
)  # fmt: skip
