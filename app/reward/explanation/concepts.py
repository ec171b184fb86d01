"""Contributions of concepts: of the features in each, the words that express it, and how much they cover."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from app.reward.explanation.phrases import find_phrase, quote, split_words
from app.reward.reward_model import RewardModel
from app.scores import ConceptContribution, DoubleArray, Score

MAX_PHRASES = 5
"""Concepts for which a phrase of the response is searched, those with the largest contributions first."""


def sum_concepts(
    model: RewardModel, contributions: DoubleArray, name: str
) -> tuple[ConceptContribution, ...]:
    """Return the contribution of each concept, largest first, and of all features without one.

    `contributions` are those of all directions, (K,); `name` is that of the model in answers. Together the
    concepts sum to the same total.
    """
    membership = model.concept_membership
    totals = (contributions @ membership).tolist()
    concepts = [
        ConceptContribution(name, concept.name, concept.sign, concept.score, len(concept.latents), total)
        for concept, total in zip(model.concepts, totals, strict=True)
    ]
    rest = membership.sum(1) == 0
    if rest.any():
        total = float(contributions[rest].sum())
        concepts.append(ConceptContribution(name, None, 0, None, int(rest.sum()), total))
    return tuple(sorted(concepts, key=lambda concept: -abs(concept.contribution)))


def compute_coverage(model: RewardModel, contributions: DoubleArray) -> float | None:
    """Return the share of the summed sizes of contributions that is in concepts; None if all are 0."""
    sizes = np.abs(contributions)
    return float((sizes @ model.concept_membership).sum() / sizes.sum()) if sizes.any() else None


def add_phrases(
    model: RewardModel,
    concepts: Sequence[ConceptContribution],
    texts: Sequence[str],
    token_credits: DoubleArray,
    *,
    with_credits: bool,
) -> tuple[ConceptContribution, ...]:
    """Return the concepts with the phrases that express them most in a response.

    `token_credits` (T, C) are the shares of the tokens `texts` (T) in each of the model's concepts.
    """
    columns = {concept.name: column for column, concept in enumerate(model.concepts)}
    words = split_words(texts)
    named = [concept for concept in concepts if concept.name is not None]
    completed: dict[str | None, ConceptContribution] = {}
    for rank, concept in enumerate(named):
        shares = token_credits[:, columns[str(concept.name)]]
        sign = concept.sign or 1
        phrase = None
        if rank < MAX_PHRASES and concept.contribution * sign > 0:
            phrase = find_phrase(words, shares * sign)
        completed[concept.name] = replace(
            concept, phrase=quote(texts, phrase) if phrase else None,
            credits=tuple(shares.tolist()) if with_credits else (),
        )  # fmt: skip
    return tuple(completed.get(concept.name, concept) for concept in concepts)


def subtract_concepts(chosen: Score, rejected: Score) -> tuple[ConceptContribution, ...]:
    """Return how concepts contribute to the margin between two scores of one model, largest first.

    The phrase is from the response that expresses the concept more.
    """
    others = {(concept.model, concept.name): concept for concept in rejected.concepts}
    differences = []
    for concept in chosen.concepts:
        other = others[concept.model, concept.name]
        margin = concept.contribution - other.contribution
        phrase = (concept if margin * (concept.sign or 1) > 0 else other).phrase
        differences.append(replace(concept, contribution=margin, phrase=phrase, credits=()))
    return tuple(sorted(differences, key=lambda concept: -abs(concept.contribution)))
