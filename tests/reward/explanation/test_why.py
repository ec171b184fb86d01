"""Explanations in words: what the sentences say follows from the numbers of scores."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.reward.explanation.why import describe_comparison, describe_reward
from app.scores import ConceptContribution, Score

DOMAIN = "questions about rivers"


def concept(
    name: str | None, sign: int, contribution: float, phrase: str | None = None
) -> ConceptContribution:
    return ConceptContribution("m", name, sign, 0.9, 2, contribution, phrase)


def make_score(reward: float, *concepts: ConceptContribution, **changes: Any) -> Score:
    plain = Score(
        model="m", reward=reward, uncertainty=0.3, percentile=87.4, distance=40.0, baseline=0.0,
        length_correction=0.0, residual=0.0, steer={}, projections=np.zeros(1, np.float32),
        activations=np.zeros(1, np.float32), contributions=np.zeros(1), coverage=0.81,
        concepts=tuple(sorted(concepts, key=lambda c: -abs(c.contribution))),
    )  # fmt: skip
    return replace(plain, **changes)


def test_a_reward_is_described_by_what_raises_and_lowers_it() -> None:
    scored = make_score(
        1.2, concept("declines", 1, 0.9, "can't help with"), concept("gives steps", -1, -0.4, "first, open"),
        concept("insults", -1, 0.3), concept(None, 0, 0.4),
    )  # fmt: skip
    assert describe_reward(scored, DOMAIN) == (
        "Reward +1.20 ± 0.30, higher than 87 % of responses to held-out training prompts. "
        "What raises it most: declines (“can't help with”) (+0.90). "
        "What lowers it most: gives steps (“first, open”) (-0.40). "
        "Named concepts hold 81 % of the size of all contributions."
    )


def test_a_text_unlike_the_training_data_is_pointed_out() -> None:
    scored = make_score(1.2, distance=99.5)
    assert describe_reward(scored, DOMAIN).endswith(
        "This text is unlike the training data (the model was trained on questions about rivers), so its "
        "reward is unreliable."
    )
    assert "unlike" not in describe_reward(make_score(1.2, distance=98.0), DOMAIN)
    other = make_score(0.2)
    assert "B is unlike" in describe_comparison(other, scored, 0.4, "")


def test_a_comparison_gives_reasons_for_the_leader_and_against_it() -> None:
    chosen = make_score(2.0, concept("declines", 1, 0.94, "can't help with"), concept("gives steps", -1, 0.1))
    rejected = make_score(
        -1.0, concept("declines", 1, 0.0), concept("gives steps", -1, -0.9, "turn it lightly"),
    )  # fmt: skip
    text = describe_comparison(chosen, rejected, 0.41, DOMAIN)
    assert text == (
        "A leads by 3.00 ± 0.41. About 1.00 because B gives steps (“turn it lightly”), 0.94 because A "
        "declines (“can't help with”). Named concepts explain 65 % of the lead."
    )
    assert describe_comparison(rejected, chosen, 0.41, DOMAIN) == (
        "B leads by 3.00 ± 0.41. About 1.00 because A gives steps (“turn it lightly”), 0.94 because B "
        "declines (“can't help with”). Named concepts explain 65 % of the lead."
    )


def test_a_small_margin_is_too_close_to_call() -> None:
    a, b = (
        make_score(0.5, concept("declines", 1, 0.5, "no")),
        make_score(0.2, concept("declines", 1, 0.2, "not")),
    )
    assert describe_comparison(a, b, 0.2, "") == (
        "Too close to call: A leads by 0.30 ± 0.20. About 0.30 because A declines (“no”)."
    )
    assert not describe_comparison(a, b, 0.1, "").startswith("Too close")
    assert describe_comparison(a, a, 0.0, "").startswith("Too close to call: A leads by 0.00")


def test_what_both_do_less_than_usual_is_said_without_words() -> None:
    a = make_score(1.0, concept("gives steps", -1, 1.2))
    b = make_score(-0.2, concept("gives steps", -1, 0.2))
    assert "1.00 because A gives steps less than B" in describe_comparison(a, b, 0.2, "")


def test_a_large_reason_against_the_leader_is_mentioned() -> None:
    a = make_score(1.0, concept("declines", 1, 1.5, "sorry"), concept("is long", 1, 0.0))
    b = make_score(0.0, concept("declines", 1, 0.0), concept("is long", 1, 0.6, "and then"))
    text = describe_comparison(a, b, 0.2, "")
    assert "Against it, 0.60 because B is long (“and then”)." in text
    small = replace(b, concepts=(concept("declines", 1, 0.0), concept("is long", 1, 0.1, "and then")))
    assert "Against it" not in describe_comparison(a, small, 0.2, "")


@pytest.mark.parametrize("margin", [-2.0, 0.5, 3.0])
def test_without_named_concepts_only_the_lead_is_said(margin: float) -> None:
    text = describe_comparison(make_score(margin), make_score(0.0), 0.1, "")
    assert text == f"{'A' if margin > 0 else 'B'} leads by {abs(margin):.2f} ± 0.10."


def test_concepts_that_do_not_explain_the_lead_are_said_to_do_so() -> None:
    a = make_score(2.0, concept("declines", 1, 0.1, "no"))
    b = make_score(0.0, concept("declines", 1, 0.5, "never"))
    assert describe_comparison(a, b, 0.2, "").endswith("Named concepts do not explain the lead.")


def test_concepts_of_several_models_name_their_models() -> None:
    strict = replace(concept("declines", 1, 0.2, "never"), model="m@strict")
    scored = make_score(1.0, concept("declines", 1, 0.9, "no"), strict)
    assert "declines [m] (“no”) (+0.90)" in describe_reward(scored, "")
    other = make_score(0.0, concept("declines", 1, 0.1), replace(strict, contribution=0.1))
    text = describe_comparison(scored, other, 0.1, "")
    assert "0.80 because A declines [m] (“no”)" in text


def test_an_unknown_domain_is_not_mentioned() -> None:
    text = describe_reward(make_score(1.2, distance=100.0), "")
    assert text.endswith("This text is unlike the training data, so its reward is unreliable.")
