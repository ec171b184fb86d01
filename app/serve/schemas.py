"""The native API's bodies, as clients see them in /docs. Unknown fields are errors."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.types import Exchange, Explain, Message

Name = Annotated[str, Field(max_length=200)]
Latent = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Factor = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Texts = Annotated[list[str], Field(min_length=1)]


class Body(BaseModel):
    """A request body; what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(NamedTuple):
    """Where in a request an exchange came from, for errors that name the field."""

    whole: str
    conversation: str
    response: str

    def of(self, param: str | None) -> str:
        """The request's name for a field of the exchange."""
        if param == "response":
            return self.response
        if param is None:
            return self.whole
        return self.conversation if self.conversation.endswith("prompt") else f"{self.whole}.{param}"


class Turn(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Conversation(Body):
    """A prompt, or the messages of a longer conversation."""

    prompt: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_conversation(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation as messages."""
        if self.messages is None:
            return (Message("user", self.prompt or ""),)
        return tuple(Message(turn.role, turn.content) for turn in self.messages)

    @property
    def field(self) -> str:
        """Which field holds the conversation."""
        return "prompt" if self.messages is None else "messages"


class Input(Conversation):
    """A conversation and the response or responses to score; messages may end with the response."""

    response: str | None = None
    responses: Texts | None = None

    @model_validator(mode="after")
    def _one_kind_of_response(self) -> Self:
        inside = self.messages is not None and self.messages[-1].role == "assistant"
        given = [self.response is not None, self.responses is not None]
        if sum(given) > 1:
            raise ValueError("give either response or responses")
        if not any(given) and not inside:
            raise ValueError("give response, responses, or messages that end with the assistant")
        if not any(given) and len(self.messages or ()) < 2:
            raise ValueError("messages hold a response but nothing it responds to")
        return self

    def exchanges(self, index: int) -> list[tuple[Exchange, Place]]:
        """The exchanges of the index-th input, each with its place in the request."""
        at = f"inputs[{index}]"
        held = Place(at, f"{at}.{self.field}", f"{at}.response")
        if self.response is not None:
            return [(Exchange(self.turns, self.response), held)]
        if self.responses is None:
            *turns, last = self.turns
            final = held._replace(response=f"{at}.messages[{len(turns)}].content")
            return [(Exchange(tuple(turns), last.content), final)]
        return [
            (Exchange(self.turns, text), held._replace(response=f"{at}.responses[{i}]"))
            for i, text in enumerate(self.responses)
        ]


class RewardsRequest(Body):
    """POST /v1/rewards."""

    model: Name | Annotated[list[Name], Field(min_length=1, max_length=64)] | None = Field(
        None, description="A reward model or several, scored on one pass; the default model if omitted."
    )
    inputs: Annotated[list[Input], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000, description="How many contributing features to list.")
    explain: Explain = Explain.FEATURES
    steer: dict[Latent, Factor] = Field(
        default_factory=dict,
        max_length=1000,
        description="Scale a latent's deviation from the baseline before the head; 0 silences it.",
    )
    truncate: bool = Field(
        default=True, description="Cut over-long text from the left instead of refusing it."
    )


class PairBody(Conversation):
    """Two responses to one conversation."""

    chosen: str
    rejected: str

    def exchanges(self, index: int) -> list[tuple[Exchange, Place]]:
        """Chosen, then rejected, each with its place in the request."""
        at = f"pairs[{index}]"
        return [
            (Exchange(self.turns, text), Place(at, f"{at}.{self.field}", f"{at}.{name}"))
            for name, text in (("chosen", self.chosen), ("rejected", self.rejected))
        ]


class CompareRequest(Body):
    """POST /v1/compare."""

    model: Name | None = None
    pairs: Annotated[list[PairBody], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000)
    truncate: bool = True


class FeatureBody(BaseModel):
    """A feature's share of a reward (or of a margin), relative to the baseline."""

    id: int
    sign: int
    label: str | None
    label_score: float | None
    contribution: float
    projection: float
    activation: float
    fired: bool
    url: str | None


class TokenBody(BaseModel):
    """What a response token added to the running reward."""

    text: str
    credit: float


class RewardBody(BaseModel):
    """One reward; reward == baseline_reward + all contributions + residual."""

    index: int
    input: int
    response: int
    model: str
    reward: float
    uncertainty: float
    percentile: float
    distance: float
    baseline_reward: float
    residual: float
    features: list[FeatureBody]
    tokens: list[TokenBody] | None = None
    prompt_tokens: int
    response_tokens: int
    truncated: bool


class Usage(BaseModel):
    """Tokens asked for, and tokens really computed after sharing prefixes."""

    prompt_tokens: int
    response_tokens: int
    computed_tokens: int


class Timings(BaseModel):
    """The slowest item's stages in milliseconds."""

    encode_ms: float
    wait_ms: float
    device_ms: float


class RewardsAnswer(BaseModel):
    """Answer of POST /v1/rewards: one flat entry a response and model, in input order."""

    id: str
    object: Literal["list"] = "list"
    models: list[str]
    steer: dict[str, float] | None = None
    data: list[RewardBody]
    usage: Usage
    timings: Timings


class ComparisonBody(BaseModel):
    """How two responses differ; margin == all contributions + residual."""

    index: int
    margin: float
    probability: float
    chosen_reward: float
    rejected_reward: float
    uncertainty: float
    residual: float
    features: list[FeatureBody]
    truncated: bool


class CompareAnswer(BaseModel):
    """Answer of POST /v1/compare."""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[ComparisonBody]
    usage: Usage
    timings: Timings


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The envelope of every error."""

    error: ErrorDetail


class CardBody(BaseModel):
    """A reward model as the manifest describes it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"


class CardList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[CardBody]


class FeatureCard(BaseModel):
    """A direction of a model: its name, and the evidence for name and choice."""

    id: int
    sign: int
    label: str | None
    label_score: float | None
    url: str | None
    difference: float | None
    stability: float | None
    agreement: float | None


class FeatureList(BaseModel):
    """GET /v1/models/{id}/features."""

    object: Literal["list"] = "list"
    total: int
    offset: int
    data: list[FeatureCard]


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 404, 413, 422, 429, 500, 503)
}
