"""Schemas of the native API's responses. This is the only list of their fields and of the fields' order.

`serialization.py` builds the functions that make large rows from them; small objects are instances of them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.serve.api.explanation_schemas import (
    CompositePartSchema,
    ConceptSchema,
    FeatureContributionSchema,
    PassageSchema,
    TokenCreditSchema,
    TurnRewardSchema,
)


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
    """One reward and its explanation; fields with a default are left out where they do not apply.

    `why` is the explanation in words. `coverage` is the share of the summed sizes of all contributions that
    is in named concepts.
    """

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
    why: str | None = None
    coverage: float | None = None
    concepts: list[ConceptSchema] | None = None
    parts: list[CompositePartSchema] | None = None
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
    """How two responses differ; margin == all contributions + length_correction - penalty + residual.

    `why` says in words which one leads and why: A is the chosen response, B the rejected one. The credits of
    the tokens of both responses sum to all contributions; those of B are negative where they help B.
    """

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
    why: str | None = None
    coverage: float | None = None
    concepts: list[ConceptSchema] | None = None
    chosen_tokens: list[TokenCreditSchema] | None = None
    rejected_tokens: list[TokenCreditSchema] | None = None


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
    """A model's feature: its label, the evidence for it (none if `sign` is 0), its projections' deciles.

    `concept` is the concept that it belongs to, `snippets` are short texts that express it, if there are any.
    """

    id: int
    sign: int
    label: str | None
    label_score: float | None
    label_items: int
    url: str | None
    difference: float | None
    stability: float | None
    agreement: float | None
    keywords: list[str]
    snippets: list[str]
    concept: str | None
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


class ConceptDriftSchema(BaseModel):
    """The mean contribution of a concept to a caller's recent rewards, in standard deviations.

    Contributions are relative to the average training response. `change` is from the older half of the
    window to the newer.
    """

    name: str
    mean: float
    change: float | None


class CallerDriftSchema(BaseModel):
    """The drift of one caller's responses: population stability indices, if there are enough responses."""

    responses: int
    enough: bool
    reward: float | None = None
    distance: float | None = None
    projections: float | None = None
    features: list[FeatureDriftSchema] | None = None
    concepts: list[ConceptDriftSchema] | None = None


class DriftResponse(BaseModel):
    """Response of GET /v1/models/{id}/drift."""

    object: Literal["drift"] = "drift"
    model: str
    callers: dict[str, CallerDriftSchema]


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
}
