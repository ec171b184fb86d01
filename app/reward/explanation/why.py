"""Explanations of rewards and comparisons in words, made from their numbers by fixed rules.

Quotes are words of the response itself, so the sentences belong in answers and not in logs.
"""

from collections.abc import Sequence
from dataclasses import replace

from app.reward.explanation.concepts import subtract_concepts
from app.scores import ConceptContribution, Score

OUT_OF_DISTRIBUTION_PERCENTILE = 99.0
"""Distance from which on a response counts as unlike the training data."""
CLEAR_LEAD = 2.0
"""Uncertainties that a margin needs, about a 95 % interval, so that it is not too close to call."""
MAX_REASONS = 3
"""Reasons of one direction; readers recognise the first three concepts of a comparison best."""
ENOUGH = 0.7
"""Share of the effect in one direction that reasons need to give before no more are listed."""
NOTABLE = 0.25
"""Share of a lead from which on the largest reason against it is mentioned."""


def describe_reward(score: Score, domain: str) -> str:
    """Return a reward in words: how high it is, which concepts raise and lower it, how much they cover."""
    rank = (
        f", higher than {score.percentile:.0f} % of responses to held-out training prompts"
        if score.percentile is not None
        else ""
    )
    sentences = [f"Reward {score.reward:+.2f} ± {score.uncertainty:.2f}{rank}."]
    named = _label_models([concept for concept in score.concepts if concept.name is not None])
    for verb, sign in (("raises", 1), ("lowers", -1)):
        reasons = _choose_reasons([concept for concept in named if concept.contribution * sign > 0])
        if reasons:
            clauses = [f"{_describe_effect(concept)} ({concept.contribution:+.2f})" for concept in reasons]
            sentences.append(f"What {verb} it most: {'; '.join(clauses)}.")
    if named and score.coverage is not None:
        share = f"{score.coverage * 100:.0f} %"
        sentences.append(f"Named concepts hold {share} of the size of all contributions.")
    return " ".join([*sentences, *_list_warnings("This text", score, domain)])


def describe_comparison(chosen: Score, rejected: Score, uncertainty: float, domain: str) -> str:
    """Return in words which of two responses leads and why; the chosen one is A, the rejected one B."""
    margin = chosen.reward - rejected.reward
    leader = "A" if margin >= 0 else "B"
    lead = f"{leader} leads by {abs(margin):.2f} ± {uncertainty:.2f}."
    too_close = abs(margin) < CLEAR_LEAD * uncertainty or margin == 0
    sentences = [f"Too close to call: {lead}" if too_close else lead]
    direction = 1 if margin >= 0 else -1
    named = [concept for concept in subtract_concepts(chosen, rejected) if concept.name is not None]
    if named:
        named = _label_models(named)
        sides = (_label_models(chosen.concepts), _label_models(rejected.concepts))
        support = _choose_reasons([c for c in named if c.contribution * direction > 0])
        if support:
            clauses = ", ".join(
                f"{abs(concept.contribution):.2f} because {_compare(concept, sides)}" for concept in support
            )
            sentences.append(f"About {clauses}.")
        against = [c for c in named if c.contribution * direction < -NOTABLE * abs(margin)][:1]
        sentences += [f"Against it, {abs(c.contribution):.2f} because {_compare(c, sides)}." for c in against]
        total = sum(concept.contribution for concept in named)
        if margin and not too_close:
            share = f"explain {total / margin * 100:.0f} % of" if total * direction > 0 else "do not explain"
            sentences.append(f"Named concepts {share} the lead.")
    sentences += [*_list_warnings("A", chosen, domain), *_list_warnings("B", rejected, domain)]
    return " ".join(sentences)


def _choose_reasons(concepts: Sequence[ConceptContribution]) -> list[ConceptContribution]:
    """Return the largest contributions of one direction until they give ENOUGH of their total."""
    total, given = sum(abs(concept.contribution) for concept in concepts), 0.0
    reasons: list[ConceptContribution] = []
    for concept in concepts[:MAX_REASONS]:
        if given >= ENOUGH * total:
            break
        reasons.append(concept)
        given += abs(concept.contribution)
    return reasons


def _describe_effect(concept: ConceptContribution) -> str:
    """Return what a response does, or does less than usual, with the words that show it."""
    if concept.contribution * (concept.sign or 1) < 0:
        return f"{concept.name} less than usual"
    return f"{concept.name}{_format_phrase(concept.phrase)}"


def _label_models(concepts: Sequence[ConceptContribution]) -> list[ConceptContribution]:
    """Return the concepts, with their models in their names if they are of several models."""
    if len({concept.model for concept in concepts}) < 2:  # several
        return list(concepts)
    return [
        replace(concept, name=f"{concept.name} [{concept.model}]") if concept.name else concept
        for concept in concepts
    ]


def _compare(concept: ConceptContribution, sides: Sequence[Sequence[ConceptContribution]]) -> str:
    """Return which response does what more; without its words if both do it less than usual."""
    more = 0 if concept.contribution * (concept.sign or 1) > 0 else 1
    names = ("A", "B")
    own = next(part for part in sides[more] if (part.model, part.name) == (concept.model, concept.name))
    if own.contribution * (own.sign or 1) < 0:
        return f"{names[1 - more]} {concept.name} less than {names[more]}"
    return f"{names[more]} {concept.name}{_format_phrase(concept.phrase)}"


def _format_phrase(phrase: str | None) -> str:
    return f" (“{phrase}”)" if phrase else ""


def _list_warnings(text: str, score: Score, domain: str) -> list[str]:
    """Return a warning if a text is unlike the training data of the model."""
    if score.distance < OUT_OF_DISTRIBUTION_PERCENTILE:
        return []
    trained = f" (the model was trained on {domain})" if domain else ""
    return [f"{text} is unlike the training data{trained}, so its reward is unreliable."]
