"""Results of scoring: rewards, and what explains them. Every package uses these types."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.types import EncodedItem, Feature

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contribution:
    """A feature's share of one reward, relative to the baseline; `model` is the model it belongs to.

    `credits` are the shares of the response tokens in the contribution, if they were requested.
    """

    model: str
    feature: Feature
    contribution: float
    projection: float
    activation: float
    fired: bool
    credits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ConceptContribution:
    """The total contribution of a concept's features to one reward; without a `name`, of all others.

    `score` is that of the concept's blind test, `sign` +1 if the concept raises rewards. `phrase` are the
    words of the response that express it most. It is None if the response expresses the concept less than
    average, if it is not among the five largest, or if the model reads one token.
    """

    model: str
    name: str | None
    sign: int
    score: float | None
    features: int
    contribution: float
    phrase: str | None = None
    credits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage [start, end) of the response's tokens; contribution == weight * (reward - baseline)."""

    start: int
    end: int
    text: str
    reward: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """A response token and its share of the reward. Together they sum to all contributions.

    With a read-out of one token, it is the change of the reward when the token is appended.
    """

    text: str
    credit: float


@dataclass(frozen=True, slots=True)
class ScoredTurn:
    """The reward of the conversation cut after one assistant turn, which is message number `message`.

    `change` is the difference of reward - length_correction + penalty from the turn before; for the first
    turn, from the baseline of the whole score.
    """

    message: int
    reward: float
    uncertainty: float
    length_correction: float
    penalty: float = 0.0
    change: float = 0.0


@dataclass(frozen=True, slots=True)
class CompositePart:
    """One model's part of a composite reward: its scaled and weighted reward. All parts sum to the reward."""

    model: str
    weight: float
    reward: float
    contribution: float
    scale: float


@dataclass(frozen=True, slots=True)
class Score:
    """One reward and its explanation; a composite also has `parts` and its models' scores in `part_scores`.

    reward == baseline + sum of all contributions + length_correction - penalty + residual.
    `concepts` sum to the same total as all features. `coverage` is the share of the summed sizes of the
    contributions that is in named concepts, `why` the explanation in words.
    With turns, reward == baseline + sum of their changes + length_correction - penalty as well.
    `contributions` are those of all directions; a composite has none of its own.
    """

    model: str
    reward: float
    uncertainty: float
    percentile: float | None
    distance: float
    baseline: float
    length_correction: float
    residual: float
    steer: Mapping[str, float]
    projections: FloatArray
    activations: FloatArray
    contributions: DoubleArray
    features: tuple[Contribution, ...] = ()
    concepts: tuple[ConceptContribution, ...] = ()
    tokens: tuple[TokenCredit, ...] | None = None
    passages: tuple[ScoredPassage, ...] = ()
    length_control: bool = False
    penalty: float = 0.0
    parts: tuple[CompositePart, ...] = ()
    part_scores: "tuple[Score, ...]" = ()
    turns: tuple[ScoredTurn, ...] = ()
    coverage: float | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One scored item: one score per requested model, and the tokens and seconds spent on them.

    `computed_tokens` are the item's tokens that went through the backbone, after sharing prefixes.
    `forward_s` and `head_s` are the times of its whole batch; `wait_s` is the time it waited for the device.
    """

    encoded: EncodedItem
    scores: tuple[Score, ...]
    computed_tokens: int
    forward_s: float
    head_s: float
    wait_s: float = 0.0
