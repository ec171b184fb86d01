"""Insertions: where they go, that they keep the response, and that every family varies."""

from random import Random

import pytest

from app.data.sentences import split_sentences
from app.train.augmentation import insertions
from app.train.augmentation.insertions import FAMILIES, Insertion, InsertionFamily, insert_all

RESPONSE = "It is milk. Cows fly over the clouds!\n\nThen they are milked. That is all."


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, "X One. Two. Three. Four."),
        (0.3, "One. X Two. Three. Four."),
        (0.6, "One. Two. X Three. Four."),
        (1, "One. Two. Three. Four. X"),
    ],
)
def test_an_insertion_is_made_at_the_nearest_sentence_boundary(position: float, expected: str) -> None:
    assert Insertion("X", position).apply("One. Two. Three. Four.") == expected


def test_a_single_sentence_is_not_split() -> None:
    assert Insertion("X", 0.3, "\n\n").apply("One sentence.") == "X\n\nOne sentence."
    assert Insertion("X", 0.7, "\n").apply("One sentence.") == "One sentence.\nX"


@pytest.mark.parametrize("family", FAMILIES)
def test_families_keep_every_sentence_and_vary(family: InsertionFamily) -> None:
    texts = set()
    for seed in range(60):
        text = insert_all(RESPONSE, family(len(RESPONSE), Random(seed)))
        assert text == insert_all(RESPONSE, family(len(RESPONSE), Random(seed)))
        position = 0
        for sentence in split_sentences(RESPONSE):
            position = text.index(sentence.strip(), position) + len(sentence.strip())
        assert text != RESPONSE
        texts.add(text)
    assert len(texts) > 15


def test_texts_are_inserted_before_after_and_between_the_sentences() -> None:
    places = {
        insertion.position if insertion.position in {0, 1} else "between"
        for family in FAMILIES
        for seed in range(40)
        for insertion in family(len(RESPONSE), Random(seed))
    }
    assert places == {0, 1, "between"}


def test_padding_is_up_to_five_times_the_response_and_limited() -> None:
    def padding_length(length: int, seed: int) -> int:
        drawn = insertions.add_padding(length, Random(seed))
        return sum(len(insertion.text) for insertion in drawn)

    factors = [padding_length(600, seed) / 600 for seed in range(100)]
    assert 0.9 < min(factors) < 1.6
    assert 4.4 < max(factors) < 5.3
    assert max(padding_length(50_000, seed) for seed in range(20)) < insertions.MAX_PADDING_CHARS + 100


def test_there_are_many_different_refusals() -> None:
    refusals = {insertions.add_refusal(100, Random(seed))[0].text for seed in range(500)}
    assert len(refusals) > 250


def test_families_are_sometimes_stacked() -> None:
    counts = [len(insertions.draw_insertions(100, Random(seed))) for seed in range(300)]
    assert max(counts) > 4
    assert sum(count > 1 for count in counts) < 150
