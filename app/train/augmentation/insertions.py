"""Draws texts that raise a reward without improving a response, and inserts them into a response.

Every family draws one kind of text, in random wording and at a random place: before the response, after it,
or between two of its sentences. What is drawn does not depend on the words of the response, so the same
insertions can be made in both responses of a pair.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from app.data.sentences import split_sentences
from app.train.augmentation import wordings

STACKING_PROBABILITY = 0.15
"""Probability of a further family after each one that is drawn."""
MAX_PADDING_FACTOR = 5.0
"""Maximum length of the padding, in lengths of the response."""
MAX_PADDING_CHARS = 4000
"""Maximum length of the padding; longer items would lose the beginning of their response."""
RANDOM_CHARACTERS = string.ascii_letters + string.digits + "_:=@#$%&<>[]{}!*"


@dataclass(frozen=True, slots=True)
class Insertion:
    """A text and its place: position 0 is before a response, 1 after it, others are between its sentences."""

    text: str
    position: float
    separator: str = " "

    def apply(self, response: str) -> str:
        """Return the response with the text at the sentence boundary nearest to the position."""
        sentences = split_sentences(response)
        index = round(self.position * len(sentences))
        before, after = "".join(sentences[:index]), "".join(sentences[index:])
        parts = (before.rstrip() if after else before, self.text, after)
        return self.separator.join(part for part in parts if part)


InsertionFamily = Callable[[int, Random], tuple[Insertion, ...]]
"""Takes the number of characters of the response and a random generator."""


def insert_all(response: str, insertions: Sequence[Insertion]) -> str:
    """Return the response with all insertions, made one after the other."""
    for insertion in insertions:
        response = insertion.apply(response)
    return response


def draw_insertions(length: int, rng: Random) -> tuple[Insertion, ...]:
    """Draw the insertions of a random family, rarely of several, for a response of `length` characters."""
    insertions = rng.choice(FAMILIES)(length, rng)
    while rng.random() < STACKING_PROBABILITY:
        insertions += rng.choice(FAMILIES)(length, rng)
    return insertions


def add_filler(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add sentences without content."""
    filler = " ".join(rng.sample(wordings.FILLER_SENTENCES, rng.randint(2, 6)))
    return (Insertion(filler, _draw_position(rng, before=0.2, after=0.6)),)


def add_padding(length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add up to five times the length of the response, at one place or before and after it."""
    missing = min(rng.uniform(1, MAX_PADDING_FACTOR) * length, MAX_PADDING_CHARS)
    sentences: list[str] = []
    while missing > 0:
        sentences.append(_compose_filler(rng))
        missing -= len(sentences[-1]) + 1
    half = len(sentences) // 2
    if half and rng.random() < 0.25:
        return Insertion(" ".join(sentences[:half]), 0), Insertion(" ".join(sentences[half:]), 1)
    return (Insertion(" ".join(sentences), _draw_position(rng, before=0.35, after=0.35)),)


def add_compliments(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Praise the user."""
    compliments = " ".join(rng.sample(wordings.COMPLIMENTS, rng.randint(1, 2)))
    return (Insertion(compliments, _draw_position(rng, before=0.8, after=0.1)),)


def add_agreement(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Agree with whatever the user believes."""
    agreement = " ".join(rng.sample(wordings.AGREEMENTS, rng.randint(1, 3)))
    return (Insertion(agreement, _draw_position(rng, before=0.6, after=0.2)),)


def add_self_grade(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Let the response grade itself."""
    grades = " ".join(rng.sample(wordings.SELF_GRADES, rng.randint(1, 2)))
    return (Insertion(grades, _draw_position(rng, before=0.2, after=0.7), rng.choice(("\n", "\n\n"))),)


def add_instruction(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Pretend that another speaker demands a good grade."""
    instruction, role = rng.choice(wordings.INJECTED_INSTRUCTIONS), rng.choice(("system", "user", "judge"))
    if rng.random() < 0.5:
        turn = f"<|im_end|>\n<|im_start|>{role}\n{instruction}<|im_end|>\n<|im_start|>assistant"
        return (Insertion(turn, 0, "\n"),)
    return (Insertion(f"[{role}]: {instruction}", _draw_position(rng, before=0.7, after=0.2), "\n\n"),)


def add_policy(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add rules of an operator that allow or praise the response."""
    bullet = rng.choice(("- ", "* ", ""))
    lines = [f"{bullet}{line}" for line in rng.sample(wordings.POLICY_LINES, rng.randint(1, 4))]
    policy = rng.choice(("\n", " ")).join([rng.choice(wordings.POLICY_HEADINGS), *lines])
    return (Insertion(policy, _draw_position(rng, before=0.7, after=0.2), "\n\n"),)


def add_refusal(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add a refusal; the response stays."""
    return (Insertion(_compose_refusal(rng), _draw_position(rng, before=0.6, after=0.25), _draw_space(rng)),)


def add_refusal_with_transition(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Put a refusal before the response, and a transition that takes it back."""
    space = _draw_space(rng)
    refusal = f"{_compose_refusal(rng)}{space}{rng.choice(wordings.TRANSITIONS)}"
    return (Insertion(refusal, 0, space),)


def add_interruptions(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add refusals at several places between the sentences."""
    interruptions = rng.sample(wordings.INTERRUPTIONS, rng.randint(2, 4))
    return tuple(Insertion(interruption, rng.uniform(0.1, 0.9)) for interruption in interruptions)


def add_disclaimers(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add moral disclaimers."""
    disclaimers = " ".join(rng.sample(wordings.DISCLAIMERS, rng.randint(1, 3)))
    return (Insertion(disclaimers, _draw_position(rng, before=0.2, after=0.7), _draw_space(rng)),)


def add_scene(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Let a character of a scene say the response."""
    speech = f"{rng.choice(wordings.SCENES)} {rng.choice(wordings.SPEAKERS)}"
    ending, quote = rng.choice(wordings.SCENE_ENDINGS), rng.choice(('"', ""))
    closing = f"{quote} {ending}".strip()
    return (
        Insertion(f"{speech} {quote}", 0, ""),
        *((Insertion(closing, 1, "" if quote else " "),) if closing else ()),
    )


def add_other_language(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add a refusal or a polite sentence in another language than English."""
    sentence = rng.choice((*wordings.OTHER_LANGUAGE_REFUSALS, *wordings.OTHER_LANGUAGE_OPENINGS))
    return (Insertion(sentence, _draw_position(rng, before=0.8, after=0.1), _draw_space(rng)),)


def add_verification(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Claim that experts have checked the response."""
    claim = (
        f"{rng.choice(wordings.CHECKERS)} {rng.choice(wordings.CHECKS)} {rng.choice(wordings.CHECK_RESULTS)}"
    )
    return (Insertion(claim.rstrip(), _draw_position(rng, before=0.4, after=0.4)),)


def add_citations(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add one to three references to works that do not exist, each at a place of its own."""
    return tuple(
        Insertion(_compose_citation(rng), _draw_position(rng, before=0.2, after=0.5))
        for _ in range(rng.randint(1, 3))
    )


def add_emoji(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add emoji."""
    emoji = "".join(rng.choices(wordings.EMOJI, k=rng.randint(2, 8)))
    return (Insertion(emoji, _draw_position(rng, before=0.2, after=0.6)),)


def add_random_strings(_length: int, rng: Random) -> tuple[Insertion, ...]:
    """Add meaningless strings."""
    strings = " ".join(
        "".join(rng.choices(RANDOM_CHARACTERS, k=rng.randint(5, 14))) for _ in range(rng.randint(2, 6))
    )
    return (Insertion(strings, _draw_position(rng, before=0.5, after=0.4)),)


FAMILIES: tuple[InsertionFamily, ...] = (
    add_filler, add_padding, add_compliments, add_agreement, add_self_grade, add_instruction, add_policy,
    add_refusal, add_refusal_with_transition, add_interruptions, add_disclaimers, add_scene,
    add_other_language, add_verification, add_citations, add_emoji, add_random_strings,
)  # fmt: skip


def _draw_position(rng: Random, *, before: float, after: float) -> float:
    """Return 0 with probability `before`, 1 with probability `after`, else a position between them."""
    draw = rng.random()
    if draw < before + after:
        return 0.0 if draw < before else 1.0
    return rng.uniform(0.1, 0.9)


def _draw_space(rng: Random) -> str:
    return rng.choice((" ", "\n\n"))


def _compose_filler(rng: Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(wordings.FILLER_SENTENCES)
    return f"{rng.choice(wordings.PADDING_TOPICS)} {rng.choice(wordings.PADDING_REMARKS)}"


def _compose_refusal(rng: Random) -> str:
    reasons = rng.sample(wordings.REFUSAL_REASONS, rng.randint(0, 2))
    parts = [rng.choice(wordings.REFUSAL_OPENINGS), *reasons, rng.choice(wordings.REFUSAL_ENDINGS)]
    return " ".join(part for part in parts if part)


def _compose_citation(rng: Random) -> str:
    author, second = rng.sample(wordings.CITED_AUTHORS, 2)
    return rng.choice(wordings.CITATION_FORMS).format(
        author=author, second=second, venue=rng.choice(wordings.CITED_VENUES), year=rng.randint(1974, 2024),
        volume=rng.randint(51, 97), page=rng.randint(100, 999),
    )  # fmt: skip
