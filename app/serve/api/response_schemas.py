"""Schemas of the native API's responses. This is the only list of their fields and of the fields' order.

`serialization.py` builds the functions that make large rows from them; small objects are instances of them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class FeatureContributionSchema(BaseModel):
    """A feature's share of a reward or of a margin, relative to the baseline.

    `fired`: its latent fired on a token that was read or, for features of responses, on the response; in a
    margin, the activations differ. `sign` 0 merges all that is orthogonal to the selected directions.
    """

    model: str
    id: int
    sign: int
    label: str | None
    label_score: float | None
    url: str | None
    contribution: float
    projection: float
    activation: float
    fired: bool


class ClusterSchema(BaseModel):
    """The total of all directions with one label; `name` is null for those without a label.

    The clusters sum to the same total as the features.
    """

    name: str | None
    directions: int
    contribution: float


class CompositePartSchema(BaseModel):
    """One model's part of a composite reward. All parts sum to the reward."""

    model: str
    weight: float
    reward: float
    contribution: float
    scale: float


class TokenCreditSchema(BaseModel):
    """How much one response token changed the reward of the text before it."""

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


class ErrorDetailSchema(BaseModel):
    """What went wrong, in which field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: ErrorDetailSchema


class RowPositionSchema(BaseModel):
    """The number of a row, and the input and the response that it belongs to."""

    index: int
    input: int
    response: int


class FailedRewardSchema(RowPositionSchema):
    """A response that could not be scored, in a list with others that were."""

    model: str
    error: ErrorDetailSchema


class ScoreSchema(BaseModel):
    """One reward and its explanation; fields with a default are left out where they do not apply."""

    model: str
    reward: float
    uncertainty: float
    percentile: float | None
    distance: float
    baseline_reward: float
    length_correction: float
    penalty: float
    residual: float
    steer: dict[str, float] | None
    features: list[FeatureContributionSchema]
    prompt_tokens: int
    response_tokens: int
    truncated: bool
    parts: list[CompositePartSchema] | None = None
    clusters: list[ClusterSchema] | None = None
    tokens: list[TokenCreditSchema] | None = None
    turns: list[TurnRewardSchema] | None = None
    passages: list[PassageSchema] | None = None


class RewardSchema(ScoreSchema, RowPositionSchema):
    """One reward; reward == baseline_reward + all contributions + length_correction - penalty + residual."""


class UsageSchema(BaseModel):
    """Tokens of the request, and tokens that were computed after sharing prefixes."""

    model_config = ConfigDict(from_attributes=True)

    prompt_tokens: int
    response_tokens: int
    computed_tokens: int


class TimingsSchema(BaseModel):
    """The slowest item's stages in milliseconds."""

    encode_ms: float
    wait_ms: float
    device_ms: float


class ScoringResponse(BaseModel):
    """The fields that all responses with scores share."""

    id: str
    object: Literal["list"] = "list"
    usage: UsageSchema
    timings: TimingsSchema


class RewardsResponse(ScoringResponse):
    """Response of POST /v1/rewards: one flat row per response and model, in input order."""

    models: list[str]
    steer: dict[str, float] | None = None
    data: list[RewardSchema | FailedRewardSchema]


class MarginSchema(BaseModel):
    """How two responses differ; margin == all contributions + length_correction - penalty + residual."""

    margin: float
    probability: float | None
    chosen_reward: float
    rejected_reward: float
    uncertainty: float
    distance: float
    length_correction: float
    penalty: float
    residual: float
    features: list[FeatureContributionSchema]
    truncated: bool


class PairIndexSchema(BaseModel):
    """The number of a pair."""

    index: int


class ComparisonSchema(MarginSchema, PairIndexSchema):
    """How the responses of a pair differ."""


class FailedComparisonSchema(PairIndexSchema):
    """A pair of which one response could not be scored."""

    error: ErrorDetailSchema
    truncated: bool


class CompareResponse(ScoringResponse):
    """Response of POST /v1/compare."""

    model: str
    data: list[ComparisonSchema | FailedComparisonSchema]


class ModelCardSchema(BaseModel):
    """A reward model: the fields of its manifest, or the definition of a composite.

    `sae_input` ("tokens", "responses"), `head_kind` ("network", "linear") and `passages` say how it reads.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"


class ModelListResponse(BaseModel):
    """Response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCardSchema]


class ModelChangeResponse(BaseModel):
    """How a model's state changed."""

    id: str
    change: Literal["loaded", "reloaded", "unloaded"]


class FeatureSchema(BaseModel):
    """A model's feature: its label, the evidence for it (none if `sign` is 0), its projections' deciles."""

    id: int
    sign: int
    label: str | None
    label_score: float | None
    url: str | None
    difference: float | None
    stability: float | None
    agreement: float | None
    keywords: list[str]
    deciles: list[float]


class FeatureListResponse(BaseModel):
    """Response of GET /v1/models/{id}/features."""

    object: Literal["list"] = "list"
    total: int
    offset: int
    data: list[FeatureSchema]


class FeatureDriftSchema(BaseModel):
    """The drift of one feature's projections, as a population stability index."""

    id: int
    label: str | None
    psi: float


class CallerDriftSchema(BaseModel):
    """The drift of one caller's responses: population stability indices, if there are enough responses."""

    responses: int
    enough: bool
    reward: float | None = None
    distance: float | None = None
    projections: float | None = None
    features: list[FeatureDriftSchema] | None = None


class DriftResponse(BaseModel):
    """Response of GET /v1/models/{id}/drift."""

    object: Literal["drift"] = "drift"
    model: str
    callers: dict[str, CallerDriftSchema]


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
}
