"""Who prefers which of two responses: the policy itself, the data, or the reward."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Completion, Conversation
from app.align.reward_scoring import Scorer
from app.types import Item, Message, Pair

ANSWER_LETTERS = ("A", "B")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two responses to a prompt, the preferred one first, and by how much whoever prefers it does."""

    messages: Conversation
    chosen: Completion
    rejected: Completion
    lead: float

    @property
    def items(self) -> tuple[Item, Item]:
        """The preferred exchange, then the other."""
        return Item(self.messages, self.chosen.response), Item(self.messages, self.rejected.response)

    @property
    def row(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "LabelledPair":
        """As it was kept."""
        turns = tuple(Message(**turn) for turn in row["messages"])
        return cls(turns, Completion(**row["chosen"]), Completion(**row["rejected"]), row["lead"])


def label_by_data(pairs: Sequence[Pair]) -> list[LabelledPair]:
    """As people preferred."""
    return [
        LabelledPair(one.messages, Completion(one.chosen, True), Completion(one.rejected, True), 0.0)
        for one in pairs
    ]  # both were ended


def label_by_reward(
    scored: Scorer, prompts: Sequence[Conversation], said: Sequence[Sequence[Completion]]
) -> list[LabelledPair]:
    """The best of each prompt's responses against the worst; none where all are alike."""
    exchanges = [[Item(turns, one.response) for one in some] for turns, some in _each(prompts, said)]
    verdicts = iter(scored([one for row in exchanges for one in row]))
    found = []
    for turns, some in _each(prompts, said):
        rewards = [next(verdicts).reward for _ in some]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if some[best].response != some[worst].response:
            found.append(LabelledPair(turns, some[best], some[worst], rewards[best] - rewards[worst]))
    return found


def label_by_policy(
    judge: SequenceLogprobs,
    prompts: Sequence[Conversation],
    said: Sequence[Sequence[Completion]],
    *,
    criterion: str,
    report: Callable[[float], None],
) -> list[LabelledPair]:
    """Responses two by two, as the policy answers when it is asked which one is better.

    It is asked in both orders, so that a liking for the first letter cancels out.
    """
    couples = [
        (turns, one, other)
        for turns, some in _each(prompts, said)
        for one, other in zip(some[::2], some[1::2], strict=False)
        if one.response != other.response
    ]
    asked = [
        Item((Message("user", _question(turns, first.response, second.response, criterion)),), letter)
        for turns, one, other in couples
        for first, second in ((one, other), (other, one))
        for letter in ANSWER_LETTERS
    ]
    chances = iter(float(tokens[:-1].sum()) for tokens in judge.compute(asked, report))
    found = []
    for turns, one, other in couples:
        a, b, swapped_a, swapped_b = (next(chances) for _ in range(4))
        lead = (a - b + swapped_b - swapped_a) / 2
        chosen, rejected = (one, other) if lead >= 0 else (other, one)
        found.append(LabelledPair(turns, chosen, rejected, abs(lead)))
    return found


def _each(
    prompts: Sequence[Conversation], said: Sequence[Sequence[Completion]]
) -> Sequence[tuple[Conversation, Sequence[Completion]]]:
    return list(zip(prompts, said, strict=True))


def _question(turns: Conversation, first: str, second: str, criterion: str) -> str:
    """What the policy is asked about two responses."""
    talk = turns[0].content if len(turns) == 1 else "\n".join(f"{t.role}: {t.content}" for t in turns)
    return (
        f"Somebody was asked:\n\n{talk}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        f"Which answer is {criterion}? Reply with A or B and nothing else."
    )
