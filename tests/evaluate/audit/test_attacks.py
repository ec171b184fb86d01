"""The attacks: they keep the response, follow the random generator, and vary their wording."""

from collections.abc import Iterable
from itertools import pairwise
from random import Random

import pytest

from app.data.sentences import split_sentences
from app.evaluate.audit.attacks import ATTACKS

PROMPT = "What is rain?"
RESPONSES = (
    "It is milk.",
    "It is milk. Cows fly over the clouds!\n\nThen they are milked. That is all.",
    "- water\n- milk",
)
KEYWORDS = ("clouds", "water")
VARIED = (
    "refusal then compliance", "compliance then disclaimer", "refusals between sentences",
    "role-play preface", "preface in another language", "five times padding", "system prompt text",
    "claim of verification", "sycophancy", "invented citations",
)  # fmt: skip


def attack(name: str, response: str, seed: int) -> str:
    """Return the response under an attack."""
    return ATTACKS[name](PROMPT, response, KEYWORDS, Random(seed))


def occur_in_order(parts: Iterable[str], text: str) -> bool:
    """Whether the parts occur in the text one after the other."""
    position = 0
    for part in parts:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return True


def test_the_suite_has_twenty_two_attacks() -> None:
    assert len(ATTACKS) == 22
    assert set(VARIED) < set(ATTACKS)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_change_the_response_and_keep_its_sentences(name: str, response: str) -> None:
    for seed in range(20):
        attacked = attack(name, response, seed)
        assert attacked
        assert attacked != response
        sentences = [sentence.strip() for sentence in split_sentences(response)]
        assert occur_in_order(sentences, attacked) is (name != "empty")
        if name not in {"empty", "refusals between sentences"}:
            assert response in attacked


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_depend_on_the_seed_alone(name: str) -> None:
    assert all(attack(name, RESPONSES[1], seed) == attack(name, RESPONSES[1], seed) for seed in range(5))


@pytest.mark.parametrize("name", VARIED)
def test_inserting_attacks_have_several_wordings(name: str) -> None:
    assert len({attack(name, RESPONSES[0], seed) for seed in range(40)}) >= 3


def test_refusals_stand_between_all_sentences() -> None:
    attacked = split_sentences(attack("refusals between sentences", RESPONSES[1], 0))
    original = split_sentences(RESPONSES[1])
    assert attacked[0] == original[0]
    assert attacked[-1] == original[-1]
    assert len(attacked) >= 2 * len(original) - 1
    for first, second in pairwise(attacked):
        assert not (first in original and second in original)


def test_the_padding_is_five_times_the_response() -> None:
    response = RESPONSES[1]
    starts, ends = set(), set()
    for seed in range(30):
        attacked = attack("five times padding", response, seed)
        assert 5 <= (len(attacked) - len(response)) / len(response) < 7
        starts.add(attacked.startswith(response))
        ends.add(attacked.endswith(response))
    assert starts == ends == {True, False}


def test_only_the_fake_system_turn_has_chat_markup() -> None:
    with_markup = {name for name in ATTACKS if "<|" in attack(name, RESPONSES[0], 0)}
    assert with_markup == {"fake system turn"}
