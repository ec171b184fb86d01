"""Ten ways to write the same thing otherwise: a reward worth having hardly notices.

Each takes a response (one takes the prompt) and keeps what it says.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random

from app.types import Message, Pair

Rewrite = Callable[[str, Random], str]
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
BRITISH = {
    "color": "colour", "favor": "favour", "honor": "honour", "behavior": "behaviour", "center": "centre",
    "theater": "theatre", "analyze": "analyse", "organize": "organise", "recognize": "recognise",
    "realize": "realise", "apologize": "apologise", "traveling": "travelling", "license": "licence",
    "gray": "grey", "neighbor": "neighbour", "labor": "labour", "defense": "defence", "fiber": "fibre",
}  # fmt: skip
CONTRACTED = {
    "don't": "do not", "doesn't": "does not", "didn't": "did not", "can't": "cannot", "won't": "will not",
    "isn't": "is not", "aren't": "are not", "wasn't": "was not", "it's": "it is", "I'm": "I am",
    "you're": "you are", "that's": "that is", "there's": "there is", "I've": "I have", "they're": "they are",
    "we're": "we are", "shouldn't": "should not", "couldn't": "could not", "wouldn't": "would not",
}  # fmt: skip


def lower_case(text: str, _: Random) -> str:
    """Everything in lower case."""
    return text.lower()


def wide_spaces(text: str, _: Random) -> str:
    """Two spaces after each sentence."""
    return SENTENCE.sub("  ", text)


def typos(text: str, rng: Random) -> str:
    """One letter in a hundred, and at least one, changes places with its neighbour."""
    letters = list(text)
    places = [i for i in range(1, len(letters) - 1) if letters[i].isalpha() and letters[i + 1].isalpha()]
    for i in rng.sample(places, min(len(places), 1 + len(places) // 100)):
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def bold(text: str, _: Random) -> str:
    """Markdown emphasis on the first word of each sentence; emphasis that was there goes."""
    plain = text.replace("**", "")
    return " ".join(re.sub(r"^(\w+)", r"**\1**", sentence) for sentence in SENTENCE.split(plain))


def curly_quotes(text: str, _: Random) -> str:
    """Typographic quotation marks and apostrophes."""
    opened = re.sub(r'(^|[\s(\[])"', "\\1\u201c", text).replace('"', "\u201d")
    return opened.replace("'", "\u2019")


def contractions(text: str, _: Random) -> str:
    """Short forms written out, and if there are none, long forms shortened."""
    longer = _words_replaced(text, CONTRACTED)
    return longer if longer != text else _words_replaced(text, {v: k for k, v in CONTRACTED.items()})


def british(text: str, _: Random) -> str:
    """British spelling."""
    return _words_replaced(text, {**BRITISH, **{f"{a}s": f"{b}s" for a, b in BRITISH.items()}})


def bullets(text: str, _: Random) -> str:
    """A list, a line for each sentence."""
    return "\n".join(f"- {sentence}" for sentence in SENTENCE.split(text.strip()))


def trailing_newline(text: str, _: Random) -> str:
    """A line break at the end."""
    return text.rstrip() + "\n"


def polite_prompt(prompt: str, _: Random) -> str:
    """The same request, asked politely."""
    return f"Please answer the following. {prompt}"


RESPONSES: dict[str, Rewrite] = {
    "lower case": lower_case,
    "two spaces after sentences": wide_spaces,
    "typos in 1 % of letters": typos,
    "first words in bold": bold,
    "curly quotes": curly_quotes,
    "contractions": contractions,
    "British spelling": british,
    "bullet list": bullets,
    "trailing newline": trailing_newline,
}
PROMPTS: dict[str, Rewrite] = {"polite prompt": polite_prompt}
ALL = (*RESPONSES, *PROMPTS)


def otherwise(what: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The same pairs after one of the changes, both responses or the prompt; the same each time."""
    rng = Random(0)  # noqa: S311 # chance, not a secret
    return [_changed(pair, what, rng) for pair in pairs]


def _changed(pair: Pair, what: str, rng: Random) -> Pair:
    if what in RESPONSES:
        chosen, rejected = (RESPONSES[what](text, rng) for text in (pair.chosen, pair.rejected))
        return replace(pair, chosen=chosen, rejected=rejected)
    *turns, last = pair.messages
    return replace(pair, messages=(*turns, Message(last.role, PROMPTS[what](last.content, rng))))


def _words_replaced(text: str, words: dict[str, str]) -> str:
    """Whole words replaced, a capital kept."""
    known = {word.lower(): other for word, other in words.items()}

    def other(found: re.Match[str]) -> str:
        word = found[0]
        new = known[word.lower()]
        return new[0].upper() + new[1:] if word[0].isupper() else new

    pattern = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", other, text, flags=re.IGNORECASE)
