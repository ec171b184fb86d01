"""Composite rewards: the scores of several models, brought to one scale, weighted and summed.

Each reward is first expressed in standard deviations of the rewards of held-out training responses. Every
number of a composite is a weighted sum of its models' numbers, so its explanation sums to its reward too.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from app.errors import BundleError, InvalidInput
from app.reward.calibration import Calibration
from app.reward.explanation.contributions import compute_changes
from app.reward.explanation.why import describe_reward
from app.scores import CompositePart, ConceptContribution, Contribution, Score, ScoredTurn, TokenCredit
from app.types import FORBID_EXTRA

MIN_STD = 1e-6
MeanAndStd = tuple[float, float]
Part = TypeVar("Part", Contribution, ConceptContribution)
RewardScale = tuple[MeanAndStd, MeanAndStd]
"""Mean and standard deviation of rewards without length control, and with it."""

EMPTY = np.zeros(0, dtype=np.float32)
NO_CONTRIBUTIONS = np.zeros(0)


class CompositeMode(StrEnum):
    """How rewards are combined: weighted mean, mean minus a penalty for uncertainty, or only the lowest."""

    MEAN = "mean"
    CAUTIOUS = "cautious"
    WORST = "worst"


@dataclass(frozen=True, slots=True)
class Composite:
    """Model names with weights. In cautious mode `penalty` times each uncertainty is subtracted.

    The field names are the keys of composites.toml and of the API.
    """

    __pydantic_config__ = FORBID_EXTRA
    weights: Mapping[str, float]
    mode: CompositeMode = CompositeMode.MEAN
    penalty: float = 1.0
    about: str = ""


def load_composites(file: Path) -> dict[str, Composite]:
    """Read the composites of models/composites.toml; none if the file does not exist."""
    if not file.exists():
        return {}
    try:
        tables = tomllib.loads(file.read_text())
        composites = TypeAdapter(dict[str, Composite]).validate_python(tables)
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BundleError(f"{file.name}: {error}") from error
    for name, composite in composites.items():
        if not composite.weights or not all(weight > 0 for weight in composite.weights.values()):
            raise BundleError(f"{file.name}: {name} needs at least one model, each with a weight above 0")
    return composites


@dataclass(frozen=True, slots=True)
class WeightedScore:
    """A model's score and its weight. It adds (reward - `mean`) * `scale` to the composite."""

    score: Score
    weight: float
    mean: float
    scale: float


def combine_scores(
    name: str, composite: Composite, scores: Sequence[Score], scales: Sequence[RewardScale], top_k: int
) -> Score:
    """Combine the scores of one item, in the order of the composite's weights, into one score."""
    combined = _combine(name, composite, scores, scales, top_k)
    return replace(combined, why=describe_reward(combined, "")) if combined.concepts else combined


def _combine(
    name: str, composite: Composite, scores: Sequence[Score], scales: Sequence[RewardScale], top_k: int
) -> Score:
    weighted = _weight_scores(composite, scores, scales)
    penalty = composite.penalty if composite.mode is CompositeMode.CAUTIOUS else 0.0
    parts = tuple(_make_part(part, penalty) for part in weighted)
    baseline = sum(part.scale * (part.score.baseline - part.mean) for part in weighted)
    turns = [_combine_turn(composite, scores, scales, index) for index in range(len(scores[0].turns))]
    return Score(
        model=name,
        reward=sum(part.contribution for part in parts),
        uncertainty=float(np.linalg.norm([part.scale * part.score.uncertainty for part in weighted])),
        percentile=None,
        distance=max(score.distance for score in scores),
        baseline=baseline,
        length_correction=sum(part.scale * part.score.length_correction for part in weighted),
        penalty=sum(penalty * part.scale * part.score.uncertainty for part in weighted),
        residual=sum(part.scale * part.score.residual for part in weighted),
        steer={f"{score.model}:{key}": factor for score in scores for key, factor in score.steer.items()},
        features=_scale_parts(weighted, lambda score: score.features)[:top_k],
        concepts=_scale_parts(weighted, lambda score: score.concepts),
        coverage=_combine_coverage(weighted),
        tokens=_sum_token_credits(weighted),
        parts=parts,
        part_scores=tuple(scores),
        turns=compute_changes(baseline, turns),
        projections=EMPTY,
        activations=EMPTY,
        contributions=NO_CONTRIBUTIONS,
    )


def explain_composite_margin(
    chosen: Score,
    rejected: Score,
    explain_part: Callable[[Score, Score], tuple[Contribution, ...]],
) -> tuple[Contribution, ...]:
    """Return the scaled features of all models that explain the margin of a composite, largest first."""
    if [part.scale for part in chosen.parts] != [part.scale for part in rejected.parts]:
        raise InvalidInput(
            f"{chosen.model} scored the two responses with different models, so no features explain the "
            "difference; compare them under one of its models",
            "model",
            "no_common_head",
        )
    features = [
        replace(feature, contribution=part.scale * feature.contribution)
        for part, *scores in zip(chosen.parts, chosen.part_scores, rejected.part_scores, strict=True)
        for feature in explain_part(*scores)
    ]
    return tuple(sorted(features, key=lambda feature: -abs(feature.contribution)))


def combine_margin_coverage(
    chosen: Score, rejected: Score, cover_part: Callable[[Score, Score], float | None]
) -> float | None:
    """Return the share of the sizes of all models' contributions to a margin that is in concepts."""
    total = covered = 0.0
    for part, *scores in zip(chosen.parts, chosen.part_scores, rejected.part_scores, strict=True):
        size = part.scale * float(np.abs(scores[0].contributions - scores[1].contributions).sum())
        total += size
        covered += size * (cover_part(*scores) or 0.0)
    return covered / total if total else None


def compute_reward_scale(calibration: Calibration) -> RewardScale:
    """Return mean and standard deviation of held-out rewards, without and with length control."""
    plain, controlled = (
        (float(quantiles.mean()), max(float(quantiles.std()), MIN_STD))
        for quantiles in calibration.reward_quantiles
    )
    return plain, controlled


def _weight_scores(
    composite: Composite, scores: Sequence[Score], scales: Sequence[RewardScale]
) -> list[WeightedScore]:
    """Weight the scores. The weights sum to 1; in worst mode the lowest score has all the weight."""
    used_scales = [scale[score.length_control] for score, scale in zip(scores, scales, strict=True)]
    if composite.mode is CompositeMode.WORST:
        scaled = [(score.reward - mean) / std for score, (mean, std) in zip(scores, used_scales, strict=True)]
        lowest = scaled.index(min(scaled))
        weights = [float(index == lowest) for index in range(len(scaled))]
    else:
        weights = [weight / sum(composite.weights.values()) for weight in composite.weights.values()]
    return [
        WeightedScore(score, weight, mean, weight / std)
        for score, weight, (mean, std) in zip(scores, weights, used_scales, strict=True)
    ]


def _make_part(part: WeightedScore, penalty: float) -> CompositePart:
    centred = part.score.reward - part.mean - penalty * part.score.uncertainty
    return CompositePart(part.score.model, part.weight, part.score.reward, part.scale * centred, part.scale)


def _combine_turn(
    composite: Composite, scores: Sequence[Score], scales: Sequence[RewardScale], index: int
) -> ScoredTurn:
    """Combine one turn of all models as the scores of the conversation cut after it would be combined."""
    turns = [score.turns[index] for score in scores]
    unexplained = [replace(score, features=(), concepts=(), tokens=None, turns=()) for score in scores]
    scores_at_turn = [
        replace(
            score,
            reward=turn.reward,
            uncertainty=turn.uncertainty,
            length_correction=turn.length_correction,
        )
        for score, turn in zip(unexplained, turns, strict=True)
    ]
    combined = combine_scores("", composite, scores_at_turn, scales, 0)
    return ScoredTurn(
        turns[0].message, combined.reward, combined.uncertainty, combined.length_correction, combined.penalty
    )


def _scale_parts(
    weighted: Sequence[WeightedScore], get_parts: Callable[[Score], tuple[Part, ...]]
) -> tuple[Part, ...]:
    """Return the features or the concepts of all models with scaled contributions, largest first."""
    parts = [
        replace(
            part,
            contribution=score.scale * part.contribution,
            credits=tuple(score.scale * share for share in part.credits),
        )
        for score in weighted
        for part in get_parts(score.score)
    ]
    return tuple(sorted(parts, key=lambda part: -abs(part.contribution)))


def _combine_coverage(weighted: Sequence[WeightedScore]) -> float | None:
    """Return the share of the summed sizes of all models' scaled contributions that is in concepts."""
    sizes = [part.scale * float(np.abs(part.score.contributions).sum()) for part in weighted]
    covered = [size * (part.score.coverage or 0.0) for size, part in zip(sizes, weighted, strict=True)]
    return sum(covered) / sum(sizes) if sum(sizes) and weighted[0].score.concepts else None


def _sum_token_credits(weighted: Sequence[WeightedScore]) -> tuple[TokenCredit, ...] | None:
    """Sum the credits token by token. Models that pool the closing token have one token more."""
    if weighted[0].score.tokens is None:
        return None
    columns = [
        [TokenCredit(token.text, part.scale * token.credit) for token in part.score.tokens or ()]
        for part in weighted
    ]
    rows = [[token for token in row if token] for row in zip_longest(*columns)]
    return tuple(TokenCredit(row[0].text, sum(token.credit for token in row)) for row in rows)
