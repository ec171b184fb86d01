"""Training inserts other words than the attacks of the audit, so that attacks test generalisation."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from random import Random

from app.data.sentences import split_sentences
from app.evaluate.audit.attacks import ATTACKS
from app.train.augmentation.insertions import FAMILIES
from app.train.augmentation.rewrites import REWRITES

SHARED_WORDS = 4
"""No sequence of this many words may occur on both sides."""
PROMPT, RESPONSE = "qxprompt", "qxfirst qxword. qxsecond qxword."
SEEDS = 300


@cache
def attack_texts() -> frozenset[str]:
    """Many texts of every attack; the prompt and the response have words of their own."""
    return frozenset(
        attack(PROMPT, RESPONSE, ("qxkeyword",), Random(seed))
        for attack in ATTACKS.values()
        for seed in range(SEEDS)
    )


@cache
def training_texts() -> frozenset[str]:
    """Many texts of every augmentation of training."""
    inserted = {
        insertion.text
        for family in FAMILIES
        for seed in range(SEEDS)
        for insertion in family(400, Random(seed))
    }
    rewritten = {
        rewrite(PROMPT, RESPONSE, ("qxkeyword",), Random(seed))
        for rewrite in REWRITES
        for seed in range(SEEDS)
    }
    return frozenset(inserted | rewritten)


def word_sequences(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """All sequences of words in lower case without words of the response and without chat markup."""
    for text in texts:
        words = re.findall(r"\w[\w'’]*", text.lower())
        for start in range(len(words) - SHARED_WORDS + 1):
            sequence = tuple(words[start : start + SHARED_WORDS])
            if not any(word.startswith(("qx", "im_")) for word in sequence):
                yield sequence


def sentences_in(texts: Iterable[str]) -> set[str]:
    """All sentences without those of the response and without chat markup."""
    plain = (re.sub(r"<\|\w+\|>", "", text) for text in texts)
    sentences = (sentence.strip() for text in plain for sentence in split_sentences(text))
    return {sentence for sentence in sentences if " " in sentence and "qx" not in sentence}


def test_no_sentence_of_an_attack_occurs_in_training() -> None:
    trained = "\n".join(training_texts())
    sentences = sentences_in(attack_texts())
    assert len(sentences) > 100
    assert [sentence for sentence in sentences if sentence in trained] == []


def test_attacks_and_training_share_no_sequence_of_four_words() -> None:
    assert set(word_sequences(attack_texts())) & set(word_sequences(training_texts())) == set()
