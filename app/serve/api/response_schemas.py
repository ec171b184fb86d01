"""What the native API answers, as clients see it in /docs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class FeatureContributionSchema(BaseModel):
    """A feature's share of a reward (or of a margin), relative to the baseline."""

    model: str
    id: int
    sign: int
    label: str | None
    label_score: float | None
    contribution: float
    projection: float
    activation: float
    fired: bool
    url: str | None


class ClusterSchema(BaseModel):
    """The directions of one name together; null holds those without one. All clusters sum as features do."""

    name: str | None
    directions: int
    contribution: float


class CompositePartSchema(BaseModel):
    """What one head adds to a composite; all parts sum to its reward."""

    model: str
    weight: float
    reward: float
    contribution: float
    scale: float


class TokenCreditSchema(BaseModel):
    """What a response token added to the running reward."""

    text: str
    credit: float


class ErrorDetailSchema(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class FailedRewardSchema(BaseModel):
    """A response that could not be scored, beside others that were."""

    index: int
    input: int
    response: int
    model: str
    error: ErrorDetailSchema


class RewardSchema(BaseModel):
    """One reward; reward == baseline_reward + all contributions + length_correction - penalty + residual."""

    index: int
    input: int
    response: int
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
    clusters: list[ClusterSchema] | None = None
    parts: list[CompositePartSchema] | None = None
    tokens: list[TokenCreditSchema] | None = None
    prompt_tokens: int
    response_tokens: int
    truncated: bool


class UsageSchema(BaseModel):
    """Tokens asked for, and tokens really computed after sharing prefixes."""

    prompt_tokens: int
    response_tokens: int
    computed_tokens: int


class TimingsSchema(BaseModel):
    """The slowest item's stages in milliseconds."""

    encode_ms: float
    wait_ms: float
    device_ms: float


class RewardsResponse(BaseModel):
    """Answer of POST /v1/rewards: one flat entry a response and model, in input order."""

    id: str
    object: Literal["list"] = "list"
    models: list[str]
    steer: dict[str, float] | None = None
    data: list[RewardSchema | FailedRewardSchema]
    usage: UsageSchema
    timings: TimingsSchema


class ComparisonSchema(BaseModel):
    """How two responses differ; margin == all contributions + length_correction - penalty + residual."""

    index: int
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


class FailedComparisonSchema(BaseModel):
    """A pair of which one response could not be scored."""

    index: int
    error: ErrorDetailSchema
    truncated: bool


class CompareResponse(BaseModel):
    """Answer of POST /v1/compare."""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[ComparisonSchema | FailedComparisonSchema]
    usage: UsageSchema
    timings: TimingsSchema


class ErrorResponse(BaseModel):
    """The envelope of every error."""

    error: ErrorDetailSchema


class ModelCardSchema(BaseModel):
    """A reward model as the manifest describes it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"


class ModelChangeResponse(BaseModel):
    """What became of a model."""

    id: str
    change: Literal["loaded", "reloaded", "unloaded"]


class ModelListResponse(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCardSchema]


class FeatureSchema(BaseModel):
    """A direction of a model: its name, the evidence for name and choice, and how its projections spread."""

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
    """GET /v1/models/{id}/features."""

    object: Literal["list"] = "list"
    total: int
    offset: int
    data: list[FeatureSchema]


class FeatureDriftSchema(BaseModel):
    """A direction whose projections moved."""

    id: int
    label: str | None
    psi: float


class CallerDriftSchema(BaseModel):
    """One caller's window: population stability indices, once there are enough responses."""

    responses: int
    enough: bool
    reward: float | None = None
    distance: float | None = None
    projections: float | None = None
    features: list[FeatureDriftSchema] | None = None


class DriftResponse(BaseModel):
    """GET /v1/models/{id}/drift."""

    object: Literal["drift"] = "drift"
    model: str
    callers: dict[str, CallerDriftSchema]


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse} for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
}
