"""Repeated and contradicting pairs, and prompts of two files, compared without case and punctuation."""

from app.train.pair_audit.duplicates import Duplicates, find_duplicates, normalise
from app.types import Message, Pair


def make_pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair((Message("user", prompt),), chosen, rejected, prompt)


PAIRS = [
    make_pair("Why?", "Because.", "No idea."),
    make_pair("why", "because", "no idea"),
    make_pair("Why?", "no idea!", "Because"),
    make_pair("How?", "Like this.", "like THIS"),
    make_pair("When?", "Now.", "Later."),
]


def test_duplicates_are_found_across_case_and_punctuation() -> None:
    found = find_duplicates(PAIRS, [make_pair("WHEN", "a", "b")])
    assert found.repeated == ((0, 1),)
    assert found.contradicting == ((0, 1, 2),)
    assert found.same_responses == (3,)
    assert found.shared_prompts == (4,)


def test_pairs_without_duplicates_have_none() -> None:
    found = find_duplicates(PAIRS[-1:])
    assert found == Duplicates((), (), (), ())


def test_texts_of_other_scripts_are_compared_too() -> None:
    assert normalise("Ça va ?") == "ça va"
    assert normalise("なぜ、空は青い?") != normalise("なぜ、海は青い?")
