"""Ten rewrites that keep the meaning; a robust reward hardly changes.

Each rewrites a response, except for one that rewrites the prompt.
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


def convert_to_lower_case(text: str, _: Random) -> str:
    """Convert the text to lower case."""
    return text.lower()


def widen_spaces(text: str, _: Random) -> str:
    """Put two spaces after each sentence."""
    return SENTENCE.sub("  ", text)


def add_typos(text: str, rng: Random) -> str:
    """Swap one letter in a hundred, and at least one, with the next letter."""
    letters = list(text)
    positions = [i for i in range(1, len(letters) - 1) if letters[i].isalpha() and letters[i + 1].isalpha()]
    for i in rng.sample(positions, min(len(positions), 1 + len(positions) // 100)):
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def bold_first_words(text: str, _: Random) -> str:
    """Make the first word of each sentence bold and remove any other bold markup."""
    plain = text.replace("**", "")
    return " ".join(re.sub(r"^(\w+)", r"**\1**", sentence) for sentence in SENTENCE.split(plain))


def use_curly_quotes(text: str, _: Random) -> str:
    """Use typographic quotation marks and apostrophes."""
    opened = re.sub(r'(^|[\s(\[])"', "\\1\u201c", text).replace('"', "\u201d")
    return opened.replace("'", "\u2019")


def swap_contractions(text: str, _: Random) -> str:
    """Expand contractions, or contract full forms if there is no contraction."""
    expanded = _replace_words(text, CONTRACTED)
    return expanded if expanded != text else _replace_words(text, {v: k for k, v in CONTRACTED.items()})


def use_british_spelling(text: str, _: Random) -> str:
    """Use British spelling."""
    return _replace_words(text, {**BRITISH, **{f"{a}s": f"{b}s" for a, b in BRITISH.items()}})


def format_as_bullets(text: str, _: Random) -> str:
    """Turn the sentences into a bullet list."""
    return "\n".join(f"- {sentence}" for sentence in SENTENCE.split(text.strip()))


def add_trailing_newline(text: str, _: Random) -> str:
    """Add a newline at the end."""
    return text.rstrip() + "\n"


def ask_politely(prompt: str, _: Random) -> str:
    """Ask the same politely."""
    return f"Please answer the following. {prompt}"


RESPONSE_REWRITES: dict[str, Rewrite] = {
    "lower case": convert_to_lower_case,
    "two spaces after sentences": widen_spaces,
    "typos in 1 % of letters": add_typos,
    "first words in bold": bold_first_words,
    "curly quotes": use_curly_quotes,
    "contractions": swap_contractions,
    "British spelling": use_british_spelling,
    "bullet list": format_as_bullets,
    "trailing newline": add_trailing_newline,
}
PROMPT_REWRITES: dict[str, Rewrite] = {"polite prompt": ask_politely}
REWRITE_NAMES = (*RESPONSE_REWRITES, *PROMPT_REWRITES)


def rewrite_pairs(name: str, pairs: Iterable[Pair]) -> list[Pair]:
    """Apply the named rewrite to both responses, or to the prompt, of each pair, reproducibly."""
    rng = Random(0)  # noqa: S311 # reproducible sampling, not a secret
    return [_rewrite_pair(pair, name, rng) for pair in pairs]


def _rewrite_pair(pair: Pair, name: str, rng: Random) -> Pair:
    if name in RESPONSE_REWRITES:
        chosen, rejected = (RESPONSE_REWRITES[name](text, rng) for text in (pair.chosen, pair.rejected))
        return replace(pair, chosen=chosen, rejected=rejected)
    *earlier, last = pair.messages
    return replace(pair, messages=(*earlier, Message(last.role, PROMPT_REWRITES[name](last.content, rng))))


def _replace_words(text: str, replacements: dict[str, str]) -> str:
    """Replace whole words; a capital first letter stays a capital."""
    by_lower_case = {word.lower(): replacement for word, replacement in replacements.items()}

    def get_replacement(match: re.Match[str]) -> str:
        word = match[0]
        replacement = by_lower_case[word.lower()]
        return replacement[0].upper() + replacement[1:] if word[0].isupper() else replacement

    pattern = "|".join(re.escape(word) for word in sorted(by_lower_case, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", get_replacement, text, flags=re.IGNORECASE)
