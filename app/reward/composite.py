"""Several rewards as one, still readable: a composite is its heads' scores, brought to one scale and weighed.

A head's reward is first expressed in deviations of what held-out training responses got. Every number of a
composite is a weighted sum of its heads' numbers, so its reasons sum to it as theirs do.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from app.errors import BundleError
from app.reward.head import Calibration
from app.types import FORBID_EXTRA, Cluster, CompositePart, Contribution, Score, TokenCredit

LEAST_SPREAD = 1e-6
Level = tuple[float, float]
Levels = tuple[Level, Level]
NOTHING = np.zeros(0, dtype=np.float32)


class Mode(StrEnum):
    """How heads are weighed: on average, less what they are unsure of, or only the worst of them."""

    MEAN = "mean"
    CAUTIOUS = "cautious"
    WORST = "worst"


@dataclass(frozen=True, slots=True)
class Composite:
    """Heads by name with their weights; `penalty` is how many uncertainties a cautious one takes off."""

    __pydantic_config__ = FORBID_EXTRA
    weights: Mapping[str, float]
    mode: Mode = Mode.MEAN
    penalty: float = 1.0
    about: str = ""


def load(file: Path) -> dict[str, Composite]:
    """The composites of models/composites.toml; none if there is no such file."""
    if not file.exists():
        return {}
    try:
        rows = tomllib.loads(file.read_text())
        found = TypeAdapter(dict[str, Composite]).validate_python(rows)
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BundleError(f"{file.name}: {error}") from error
    for name, composite in found.items():
        if not composite.weights or not all(weight > 0 for weight in composite.weights.values()):
            raise BundleError(f"{file.name}: {name} needs heads, each with a weight above 0")
    return found


@dataclass(frozen=True, slots=True)
class Head:
    """A head's score and weight; less `mean` and times `scale`, its reward is what it adds."""

    score: Score
    weight: float
    mean: float
    scale: float


def blend(
    name: str, composite: Composite, scores: Sequence[Score], levels: Sequence[Levels], top_k: int
) -> Score:
    """One score of several, on the same exchange and in the order of the weights."""
    heads = _weighed(composite, scores, levels)
    penalty = composite.penalty if composite.mode is Mode.CAUTIOUS else 0.0
    parts = tuple(_part(head, penalty) for head in heads)
    features = [_feature(one, head) for head in heads for one in head.score.features]
    return Score(
        model=name,
        reward=sum(part.contribution for part in parts),
        uncertainty=float(np.linalg.norm([head.scale * head.score.uncertainty for head in heads])),
        percentile=None,
        distance=max(score.distance for score in scores),
        baseline=sum(head.scale * (head.score.baseline - head.mean) for head in heads),
        length_correction=sum(head.scale * head.score.length_correction for head in heads),
        penalty=sum(penalty * head.scale * head.score.uncertainty for head in heads),
        residual=sum(head.scale * head.score.residual for head in heads),
        steer={f"{score.model}:{key}": factor for score in scores for key, factor in score.steer.items()},
        features=tuple(sorted(features, key=lambda one: -abs(one.contribution))[:top_k]),
        clusters=_clusters(heads),
        tokens=_tokens(heads),
        parts=parts,
        heads=tuple(scores),
        projections=NOTHING,
        activations=NOTHING,
    )


def levels(calibration: Calibration) -> Levels:
    """Mean and deviation of what held-out responses got, without and with length control."""
    plain, controlled = (
        (float(one.mean()), max(float(one.std()), LEAST_SPREAD)) for one in calibration.rewards
    )
    return plain, controlled


def _weighed(composite: Composite, scores: Sequence[Score], levels: Sequence[Levels]) -> list[Head]:
    """Weights sum to 1, in the worst case all of it on the lowest head."""
    usual = [level[score.length_control] for score, level in zip(scores, levels, strict=True)]
    if composite.mode is Mode.WORST:
        raised = [(score.reward - mean) / spread for score, (mean, spread) in zip(scores, usual, strict=True)]
        weights = [float(at == raised.index(min(raised))) for at in range(len(raised))]
    else:
        weights = [weight / sum(composite.weights.values()) for weight in composite.weights.values()]
    return [
        Head(score, weight, mean, weight / spread)
        for score, weight, (mean, spread) in zip(scores, weights, usual, strict=True)
    ]


def _part(head: Head, penalty: float) -> CompositePart:
    level = head.score.reward - head.mean - penalty * head.score.uncertainty
    return CompositePart(head.score.model, head.weight, head.score.reward, head.scale * level, head.scale)


def _feature(one: Contribution, head: Head) -> Contribution:
    return replace(one, contribution=head.scale * one.contribution)


def _clusters(heads: Sequence[Head]) -> tuple[Cluster, ...]:
    """Clusters of the same name are one, whichever head they belong to."""
    found: dict[str | None, Cluster] = {}
    for head in heads:
        for one in head.score.clusters:
            before = found.get(one.name, Cluster(one.name, 0, 0.0))
            contribution = before.contribution + head.scale * one.contribution
            found[one.name] = Cluster(one.name, before.directions + one.directions, contribution)
    return tuple(sorted(found.values(), key=lambda one: -abs(one.contribution)))


def _tokens(heads: Sequence[Head]) -> tuple[TokenCredit, ...] | None:
    """Credits added token by token; a head may also read the closing token."""
    if heads[0].score.tokens is None:
        return None
    columns = [
        [TokenCredit(one.text, head.scale * one.credit) for one in head.score.tokens or ()] for head in heads
    ]
    rows = [[one for one in row if one] for row in zip_longest(*columns)]
    return tuple(TokenCredit(row[0].text, sum(one.credit for one in row)) for row in rows)
