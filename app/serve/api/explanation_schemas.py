"""Schemas of what explains a reward: features, concepts, parts, tokens, passages and turns."""

from pydantic import BaseModel


class FeatureContributionSchema(BaseModel):
    """A feature's share of a reward or of a margin, relative to the baseline.

    `fired`: its latent fired on a token that was read or, for features of responses, on the response; in a
    margin, the activations differ. `sign` 0 merges all that is orthogonal to the selected directions.
    `label_score` is from a blind test of `label_items` texts; with 0 of them the label is automatic.
    """

    model: str
    id: int
    sign: int
    label: str | None
    label_score: float | None
    label_items: int
    url: str | None
    contribution: float
    projection: float
    activation: float
    fired: bool
    credits: list[float] | None = None


class ConceptSchema(BaseModel):
    """The total contribution of a concept's features; `name` is null for all features without one.

    `sign` is 1 if the concept raises rewards, `score` its balanced accuracy in a blind test, `features` how
    many it has. `phrase` are words of the response that express it, null if the response expresses it less
    than average, if it is not among the five largest, or if the model reads one token. All concepts sum to
    the same total as all features. `credits` are the shares of the tokens, with `explain: "tokens"`.
    """

    model: str
    name: str | None
    sign: int
    score: float | None
    features: int
    contribution: float
    phrase: str | None
    credits: list[float] | None = None


class CompositePartSchema(BaseModel):
    """One model's part of a composite reward. All parts sum to the reward."""

    model: str
    weight: float
    reward: float
    contribution: float
    scale: float


class TokenCreditSchema(BaseModel):
    """The share of one response token in the reward; together they sum to all contributions."""

    text: str
    credit: float


class PassageSchema(BaseModel):
    """A passage of the response with a large weight in the reward; `start` and `end` are response tokens.

    `reward` is that of its mean, read in context. `contribution` is weight * (reward - baseline_reward);
    those of all passages and of the whole response sum to the same total as the features.
    """

    start: int
    end: int
    text: str
    reward: float
    weight: float
    contribution: float


class TurnRewardSchema(BaseModel):
    """The reward of the conversation cut after one assistant turn, and its change from the turn before.

    `message` is the turn's position in `messages`; the response is the last. The changes are those of
    reward - length_correction + penalty, and the first is from the baseline. So after every turn, reward ==
    baseline_reward + all changes so far + length_correction - penalty.
    """

    message: int
    reward: float
    change: float
    length_correction: float
    penalty: float
