"""Types that every package uses: frozen dataclasses that do not need torch.

Shape letters in all docstrings: B items, T packed tokens, D width of the residual stream,
F latents of the SAE, K selected directions (both signs), H hidden units, E heads of the ensemble.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FORBID_EXTRA = {"extra": "forbid"}
"""Pydantic config of dataclasses that are read from files: unknown keys are errors."""
MIN_AGREEMENT = 0.8
"""Minimum AUROC at which a feature's projection counts as a predictor of its latent's firing."""
Progress = Callable[[str, float], None]
"""Callback that receives the name of a stage and the share of it that is done, 0 to 1."""


class Explain(StrEnum):
    """How detailed the explanation of a reward is."""

    NONE = "none"
    FEATURES = "features"
    TOKENS = "tokens"
    TURNS = "turns"


class Pooling(StrEnum):
    """Which token positions of a response are pooled: all of them, the last one, or the closing token."""

    MEAN = "mean"
    LAST = "last"
    END = "end"


class SaeInput(StrEnum):
    """What an SAE encodes: the residual of each token, or the pooled residual of a response."""

    TOKENS = "tokens"
    RESPONSES = "responses"


class HeadKind(StrEnum):
    """Whether a head is an ensemble of ReLU networks or of linear functions."""

    NETWORK = "network"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation and one response to it. This is what is scored."""

    messages: tuple[Message, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair. Pairs of one `group` share a prompt; `attributes` are the row's other fields."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def items(self) -> tuple[Item, Item]:
        """The item with the preferred response, then the item with the rejected one."""
        return Item(self.messages, self.chosen), Item(self.messages, self.rejected)


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """Tokens [start, end) of message number `message`, an assistant's; the closing token is at `end`."""

    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item as token ids: prompt, response [response_start, response_end), closing token.

    `num_messages` counts the messages before the response. `earlier_turns` are the assistant's turns that
    have tokens, are closed as a response is, and are not truncated. `sentence_ends` are token indices.
    """

    ids: tuple[int, ...]
    response_start: int
    truncated: bool = False
    num_messages: int = 0
    earlier_turns: tuple[AssistantTurn, ...] = ()
    sentence_ends: frozenset[int] = frozenset()

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids before the response."""
        return self.ids[: self.response_start]

    @property
    def response_end(self) -> int:
        """Index of the closing token, one past the response."""
        return len(self.ids) - 1

    @property
    def response_turn(self) -> AssistantTurn:
        """The response as a turn of the conversation, its last."""
        return AssistantTurn(self.num_messages, self.response_start, self.response_end)


@dataclass(frozen=True, slots=True)
class Profile:
    """Saved options of a model. `steer` maps a latent number or a concept to a factor."""

    __pydantic_config__ = FORBID_EXTRA
    about: str = ""
    steer: Mapping[str, float] = field(default_factory=dict)
    length_control: bool = False


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What to compute for an item. A model name may include a profile, as in safety@strict."""

    models: tuple[str, ...]
    explain: Explain = Explain.FEATURES
    top_k: int = 5
    length_control: bool = False
    steer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """An encoded item and the options to score it with."""

    encoded: EncodedItem
    options: ScoreOptions

    @property
    def earlier_turns(self) -> tuple[AssistantTurn, ...]:
        """The assistant's turns before the response that get a reward too."""
        return self.encoded.earlier_turns if self.options.explain is Explain.TURNS else ()


@dataclass(frozen=True, slots=True)
class Feature:
    """A selected latent as the bundle describes it; `sign` is +1 if it fires more in preferred responses.

    The feature with sign 0 merges all that is orthogonal to the selected directions. `difference` is the
    firing rate in preferred minus rejected responses, `stability` the share of bootstrap samples that select
    it, `agreement` the AUROC of its projection predicting its firing, `keywords` its label's words.
    `label_score` is the label's balanced accuracy in a blind test of `label_items` texts; a label that was
    made automatically has 0 of them, and a score on tokens. `snippets` are short texts that express it, if
    their owner put them into the bundle.
    """

    latent: int
    sign: int
    label: str | None = None
    label_score: float | None = None
    label_items: int = 0
    url: str | None = None
    difference: float | None = None
    stability: float | None = None
    agreement: float | None = None
    keywords: tuple[str, ...] = ()
    snippets: tuple[str, ...] = ()

    @property
    def projection_predicts_firing(self) -> bool:
        """Whether the projection predicts well enough when the latent fires."""
        return (self.agreement or 0.0) >= MIN_AGREEMENT
