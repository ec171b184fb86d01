"""The nouns every room shares: frozen dataclasses without torch.

Shape letters used everywhere: B items, T packed tokens, D width of the residual stream,
F latents of the dictionary, K selected directions (both signs), H hidden units, E heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
FORBID_EXTRA = {"extra": "forbid"}
MIN_AGREEMENT = 0.8
ANONYMOUS_CALLER = "default"


class Explain(StrEnum):
    """How much of the reason travels with a reward."""

    NONE = "none"
    FEATURES = "features"
    TOKENS = "tokens"


class Pooling(StrEnum):
    """Which residual vectors of a response the reward is read from."""

    MEAN = "mean"
    LAST = "last"
    END = "end"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation and one response to it: the thing that is scored."""

    messages: tuple[Message, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversation with the response people preferred and the one they did not.

    `group` ties pairs that share a prompt; `facts` is what else the row said, for looking at parts.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def items(self) -> tuple[Item, Item]:
        """The preferred exchange, then the rejected one."""
        return Item(self.messages, self.chosen), Item(self.messages, self.rejected)


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An exchange as token ids: prompt, then response [start, stop), then the closing token."""

    ids: tuple[int, ...]
    start: int
    truncated: bool = False

    @property
    def prompt(self) -> tuple[int, ...]:
        """What comes before the response."""
        return self.ids[: self.start]

    @property
    def stop(self) -> int:
        """Index of the closing token, one past the response."""
        return len(self.ids) - 1


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved way to ask a model: what is steered, latents by number or clusters by name, and how."""

    __pydantic_config__ = FORBID_EXTRA
    about: str = ""
    steer: Mapping[str, float] = field(default_factory=dict)
    length_control: bool = False


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a caller wants to know about an exchange; models may name a profile, as in safety@strict."""

    models: tuple[str, ...]
    explain: Explain = Explain.FEATURES
    top_k: int = 5
    length_control: bool = False
    clusters: bool = False
    steer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """One exchange on its way to the device."""

    encoded: EncodedItem
    options: ScoreOptions


@dataclass(frozen=True, slots=True)
class RequestContext:
    """How a caller wants to be served: as whom, before others or not, and how long it waits."""

    caller: str = ANONYMOUS_CALLER
    host: str = ""
    urgent: bool = False
    timeout_s: float = 110.0

    @property
    def fairness_key(self) -> str:
        """Whom to be fair to: the caller by name, or else by address."""
        return self.host if self.caller == ANONYMOUS_CALLER else self.caller


@dataclass(frozen=True, slots=True)
class Feature:
    """A selected latent as the bundle describes it; `sign` is +1 where preferred responses fire it.

    `difference` is preferred minus rejected firing; `stability` the share of bootstrap samples that select
    it too; `agreement` how well its projection tells whether it fires (AUROC). `keywords` are words its
    label stands for.
    """

    latent: int
    sign: int
    label: str | None = None
    label_score: float | None = None
    url: str | None = None
    difference: float | None = None
    stability: float | None = None
    agreement: float | None = None
    keywords: tuple[str, ...] = ()

    @property
    def tracks(self) -> bool:
        """Whether the projection tells well enough when the latent fires."""
        return (self.agreement or 0.0) >= MIN_AGREEMENT


@dataclass(frozen=True, slots=True)
class Contribution:
    """A feature's share of one reward, relative to the baseline; `model` says whose feature it is."""

    model: str
    feature: Feature
    contribution: float
    projection: float
    activation: float
    fired: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """The directions of one name, and their share of a reward together; those without a name are one too."""

    name: str | None
    directions: int
    contribution: float


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """What one response token added to the reward of the text before it."""

    text: str
    credit: float


@dataclass(frozen=True, slots=True)
class CompositePart:
    """What one head adds to a composite: its reward, brought to scale and weighed; all parts sum to it."""

    model: str
    weight: float
    reward: float
    contribution: float
    scale: float


@dataclass(frozen=True, slots=True)
class Score:
    """One reward and its reasons; of a composite also its parts, and the heads' own scores.

    reward == baseline + sum of all contributions + length_correction - penalty + residual.
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
    features: tuple[Contribution, ...]
    clusters: tuple[Cluster, ...]
    tokens: tuple[TokenCredit, ...] | None
    projections: FloatArray
    activations: FloatArray
    length_control: bool = False
    penalty: float = 0.0
    parts: tuple[CompositePart, ...] = ()
    heads: "tuple[Score, ...]" = ()


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """What the device gives back for one job: a score a model, and what the pass cost."""

    scores: tuple[Score, ...]
    computed_tokens: int
    forward_s: float
    head_s: float
