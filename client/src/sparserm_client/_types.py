"""The samples a caller sends, the rewards it gets back, and the error of a failed request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Messages = Sequence[Mapping[str, str]]


class RequestFailed(Exception):
    """The server rejected a request, or did not answer in time.

    `status` is the HTTP status of the last response, or None if there was no response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to score, and the prompt (a string, or chat messages) that it answers."""

    prompt: str | Messages
    response: str

    def as_input(self) -> dict[str, Any]:
        """Return the sample as an element of `inputs` in POST /v1/rewards.

        The server rejects an empty response; trainers send one when a policy stops at once. It is sent as a
        blank line, which is also what the server's own routes for trainers score in that case.
        """
        response = self.response or "\n"
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "response": response}
        return {"messages": [dict(message) for message in self.prompt], "response": response}


@dataclass(frozen=True, slots=True)
class FeatureShare:
    """The part of a reward that comes from one feature; `label` is None for a feature without a name."""

    id: int
    label: str | None
    contribution: float


@dataclass(frozen=True, slots=True)
class ConceptShare:
    """The part of a reward that comes from one concept, a group of features with a meaning.

    * `name`: what the response does ("declines"); None for all features that belong to no concept.
    * `phrase`: words of the response that express it; None if it expresses the concept less than average, if
      the concept is not among the five largest, or if the model reads one token.
    """

    name: str | None
    contribution: float
    phrase: str | None


@dataclass(frozen=True, slots=True)
class TurnReward:
    """The reward of a conversation cut after one turn of the assistant.

    * `message`: the turn's position among the messages; the response comes after the last of them.
    * `reward`: what the model gives the turn as a response to what is before it.
    * `change`: how far the turn moved the reward; for the first, from the model's baseline.
    """

    message: int
    reward: float
    change: float


@dataclass(frozen=True, slots=True)
class PassageReward:
    """A passage of the response that has a large weight in the reward of a model that reads passages.

    * `start`, `end`: the response tokens [start, end) that it covers, and `text`, what they say.
    * `reward`: what the head gives the mean over its tokens, which were read in context.
    * `weight`: its weight in the reward; those of all passages and of the whole response sum to 1.
    * `contribution`: weight * (reward - the model's baseline).
    """

    start: int
    end: int
    text: str
    reward: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Reward:
    """The score that one model gives to one response.

    * `reward`: in standard deviations of the rewards of training responses; 0 is typical.
    * `uncertainty`: disagreement of the model's heads, in the same unit.
    * `percentile`: rank among held-out training responses, 0 to 100; None for a composite model.
    * `distance`: rank of the distance from the training data, 0 to 100; near 100 the reward is unreliable.
    * `model`: the model that gave the score.
    * `features`: the largest contributions, at most `top_k`.
    * `concepts`: the contributions of all concepts, largest first; only with `top_k` or `turns`.
    * `coverage`: share of the summed sizes of all contributions that is in concepts with a name.
    * `why`: the explanation in words; it quotes the response.
    * `turns`: if requested, the assistant's turns with their rewards, the response last. Turns without text
      and truncated turns are left out.
    * `passages`: of models that read passages, at most three with the largest weights;
      only with `top_k` or `turns`.
    * `truncated`: whether old text was cut from the prompt to fit the model.
    * `error`: None, or why the server could not score this response although the request was valid; all
      numbers are NaN then.
    """

    reward: float
    uncertainty: float
    percentile: float | None
    distance: float
    model: str
    features: tuple[FeatureShare, ...]
    truncated: bool
    error: str | None = None
    turns: tuple[TurnReward, ...] = ()
    passages: tuple[PassageReward, ...] = ()
    concepts: tuple[ConceptShare, ...] = ()
    coverage: float | None = None
    why: str | None = None

    def raise_for_error(self) -> "Reward":
        """Return this reward, or raise RequestFailed if the response could not be scored."""
        if self.error is not None:
            raise RequestFailed(self.error, 500)
        return self
