"""What the native API takes, as clients see it in /docs. Unknown fields are errors."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.types import Explain, Item, Message

ModelName = Annotated[str, Field(max_length=200)]
SteerTarget = Annotated[str, Field(min_length=1, max_length=200)]
SteerFactor = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
ResponseTexts = Annotated[list[str], Field(min_length=1)]


class RequestModel(BaseModel):
    """A request body; what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputLocation(NamedTuple):
    """Where in a request an exchange came from, for errors that name the field."""

    item: str
    conversation: str
    response: str

    def field_for(self, param: str | None) -> str:
        """The request's name for a field of the exchange."""
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
    def _one_conversation(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    @property
    def chat_messages(self) -> tuple[Message, ...]:
        """The conversation as messages."""
        if self.messages is None:
            return (Message("user", self.prompt or ""),)
        return tuple(Message(turn.role, turn.content) for turn in self.messages)

    @property
    def conversation_field(self) -> str:
        """Which field holds the conversation."""
        return "prompt" if self.messages is None else "messages"


class RewardsInput(ConversationInput):
    """A conversation and the response or responses to score; messages may end with the response."""

    response: str | None = None
    responses: ResponseTexts | None = None

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

    def items(self, index: int) -> list[tuple[Item, InputLocation]]:
        """The exchanges of the index-th input, each with its place in the request."""
        at = f"inputs[{index}]"
        held = InputLocation(at, f"{at}.{self.conversation_field}", f"{at}.response")
        if self.response is not None:
            return [(Item(self.chat_messages, self.response), held)]
        if self.responses is None:
            *turns, last = self.chat_messages
            final = held._replace(response=f"{at}.messages[{len(turns)}].content")
            return [(Item(tuple(turns), last.content), final)]
        return [
            (Item(self.chat_messages, text), held._replace(response=f"{at}.responses[{i}]"))
            for i, text in enumerate(self.responses)
        ]


class RewardsRequest(RequestModel):
    """POST /v1/rewards."""

    model: ModelName | Annotated[list[ModelName], Field(min_length=1, max_length=64)] | None = Field(
        None, description="A reward model or several, scored on one pass; the default model if omitted."
    )
    inputs: Annotated[list[RewardsInput], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000, description="How many contributing features to list.")
    explain: Explain = Explain.FEATURES
    clusters: bool = Field(default=False, description="Also sum up the contributions of each name.")
    steer: dict[SteerTarget, SteerFactor] = Field(
        default_factory=dict,
        max_length=1000,
        description="Scale how far latents (by number) or clusters (by name) leave the baseline; 0 silences.",
    )
    length_control: bool = Field(
        default=False,
        description="Take out of each reward what goes with its length among training responses.",
    )
    truncate: bool = Field(
        default=True, description="Cut over-long text from the left instead of refusing it."
    )


class PreferencePairInput(ConversationInput):
    """Two responses to one conversation."""

    chosen: str
    rejected: str

    def items(self, index: int) -> list[tuple[Item, InputLocation]]:
        """Chosen, then rejected, each with its place in the request."""
        at = f"pairs[{index}]"
        return [
            (
                Item(self.chat_messages, text),
                InputLocation(at, f"{at}.{self.conversation_field}", f"{at}.{name}"),
            )
            for name, text in (("chosen", self.chosen), ("rejected", self.rejected))
        ]


class CompareRequest(RequestModel):
    """POST /v1/compare."""

    model: ModelName | None = None
    pairs: Annotated[list[PreferencePairInput], Field(min_length=1)]
    top_k: int = Field(5, ge=0, le=1000)
    length_control: bool = Field(
        default=False,
        description="Take out of each reward what goes with its length among training responses.",
    )
    truncate: bool = True
