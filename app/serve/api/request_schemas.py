"""Schemas of the native API's requests, as /docs shows them. Unknown fields are errors."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.types import Explain, Item, Message

ModelName = Annotated[str, Field(max_length=200)]
SteerTarget = Annotated[str, Field(min_length=1, max_length=200)]
SteerFactor = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
ResponseTexts = Annotated[list[str], Field(min_length=1)]


class RequestModel(BaseModel):
    """Base of all request schemas: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputLocation(NamedTuple):
    """Where in a request an item came from, so that errors name the field: inputs[3], inputs[3].response."""

    item: str
    conversation: str
    response: str

    def field_for(self, param: str | None) -> str:
        """Return the name that an item's field has in the request; None stands for the whole item."""
        if param == "response":
            return self.response
        if param is None:
            return self.item
        return self.conversation if self.conversation.endswith("prompt") else f"{self.item}.{param}"


class MessageInput(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ConversationInput(RequestModel):
    """A prompt, or the messages of a longer conversation."""

    prompt: str | None = None
    messages: Annotated[list[MessageInput], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_conversation(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    @property
    def chat_messages(self) -> tuple[Message, ...]:
        """The conversation as messages of `app.types`."""
        if self.messages is None:
            return (Message("user", self.prompt or ""),)
        return tuple(Message(message.role, message.content) for message in self.messages)

    @property
    def conversation_field(self) -> str:
        """The name of the field that holds the conversation."""
        return "prompt" if self.messages is None else "messages"


class RewardsInput(ConversationInput):
    """A conversation and the responses to score. The messages may end with the response."""

    response: str | None = None
    responses: ResponseTexts | None = None

    @model_validator(mode="after")
    def _check_responses(self) -> Self:
        if self.response is not None and self.responses is not None:
            raise ValueError("give either response or responses")
        if self.response is not None or self.responses is not None:
            return self
        messages = self.messages or []
        if not messages or messages[-1].role != "assistant":
            raise ValueError("give response, responses, or messages that end with the assistant")
        if len(messages) < 2:
            raise ValueError("messages hold a response but nothing it responds to")
        return self

    def to_items(self, index: int) -> list[tuple[Item, InputLocation]]:
        """Return the items of this input, which is number `index` of the request, with their locations."""
        path = f"inputs[{index}]"
        location = InputLocation(path, f"{path}.{self.conversation_field}", f"{path}.response")
        if self.response is not None:
            return [(Item(self.chat_messages, self.response), location)]
        if self.responses is None:
            *messages, last = self.chat_messages
            last_location = location._replace(response=f"{path}.messages[{len(messages)}].content")
            return [(Item(tuple(messages), last.content), last_location)]
        return [
            (Item(self.chat_messages, response), location._replace(response=f"{path}.responses[{number}]"))
            for number, response in enumerate(self.responses)
        ]


class RewardsRequest(RequestModel):
    """Request of POST /v1/rewards."""

    model: ModelName | Annotated[list[ModelName], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="One or several reward models, scored in one forward pass; default: the default model.",
    )
    inputs: Annotated[list[RewardsInput], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000, description="How many contributing features to list.")
    explain: Explain = Field(
        Explain.FEATURES,
        description="none, features (with concepts and a sentence), tokens (also credits of tokens), or "
        "turns (also the reward after each assistant turn).",
    )
    steer: dict[SteerTarget, SteerFactor] = Field(
        default_factory=dict,
        max_length=1000,
        description="Factors on contributions: of latents by number, or of concepts by name; 0 removes them.",
    )
    length_control: bool = Field(
        default=False,
        description="Subtract the part of each reward that response length predicts in the training data.",
    )
    truncate: bool = Field(
        default=True, description="Truncate too long text from the left instead of refusing it."
    )


class PreferencePairInput(ConversationInput):
    """A conversation with two responses."""

    chosen: str
    rejected: str

    def to_items(self, index: int) -> list[tuple[Item, InputLocation]]:
        """Return the chosen, then the rejected item of this pair, number `index` of the request."""
        path = f"pairs[{index}]"
        conversation = f"{path}.{self.conversation_field}"
        return [
            (Item(self.chat_messages, response), InputLocation(path, conversation, f"{path}.{name}"))
            for name, response in (("chosen", self.chosen), ("rejected", self.rejected))
        ]


class CompareRequest(RequestModel):
    """Request of POST /v1/compare."""

    model: ModelName | None = None
    pairs: Annotated[list[PreferencePairInput], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000)
    explain: Literal[Explain.NONE, Explain.FEATURES, Explain.TOKENS] = Field(
        Explain.FEATURES,
        description="none, features (with concepts and a sentence), or tokens (also credits of tokens).",
    )
    length_control: bool = Field(
        default=False,
        description="Subtract the part of each reward that response length predicts in the training data.",
    )
    truncate: bool = True
