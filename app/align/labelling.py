"""Who prefers which of two responses: the policy itself, the data, or the reward."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.align.policy.logprobs import Likelihood
from app.align.policy.model import Said, Turns
from app.align.reward_scoring import Scorer
from app.types import Item, Message, Pair

LETTERS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two responses to a prompt, the preferred one first, and by how much whoever prefers it does."""

    messages: Turns
    chosen: Said
    rejected: Said
    lead: float

    @property
    def exchanges(self) -> tuple[Item, Item]:
        """The preferred exchange, then the other."""
        return Item(self.messages, self.chosen.response), Item(self.messages, self.rejected.response)

    @property
    def row(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Labelled":
        """As it was kept."""
        turns = tuple(Message(**turn) for turn in row["messages"])
        return cls(turns, Said(**row["chosen"]), Said(**row["rejected"]), row["lead"])


def by_data(pairs: Sequence[Pair]) -> list[Labelled]:
    """As people preferred."""
    return [Labelled(one.messages, Said(one.chosen, True), Said(one.rejected, True), 0.0) for one in pairs]  # noqa: FBT003 # both were ended


def by_reward(scored: Scorer, prompts: Sequence[Turns], said: Sequence[Sequence[Said]]) -> list[Labelled]:
    """The best of each prompt's responses against the worst; none where all are alike."""
    exchanges = [[Item(turns, one.response) for one in some] for turns, some in _each(prompts, said)]
    verdicts = iter(scored([one for row in exchanges for one in row]))
    found = []
    for turns, some in _each(prompts, said):
        rewards = [next(verdicts).reward for _ in some]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if some[best].response != some[worst].response:
            found.append(Labelled(turns, some[best], some[worst], rewards[best] - rewards[worst]))
    return found


def by_itself(
    judge: Likelihood,
    prompts: Sequence[Turns],
    said: Sequence[Sequence[Said]],
    *,
    criterion: str,
    report: Callable[[float], None],
) -> list[Labelled]:
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
        for letter in LETTERS
    ]
    chances = iter(float(tokens[:-1].sum()) for tokens in judge.of(asked, report))
    found = []
    for turns, one, other in couples:
        a, b, swapped_a, swapped_b = (next(chances) for _ in range(4))
        lead = (a - b + swapped_b - swapped_a) / 2
        chosen, rejected = (one, other) if lead >= 0 else (other, one)
        found.append(Labelled(turns, chosen, rejected, abs(lead)))
    return found


def _each(prompts: Sequence[Turns], said: Sequence[Sequence[Said]]) -> Sequence[tuple[Turns, Sequence[Said]]]:
    return list(zip(prompts, said, strict=True))


def _question(turns: Turns, first: str, second: str, criterion: str) -> str:
    """What the policy is asked about two responses."""
    talk = turns[0].content if len(turns) == 1 else "\n".join(f"{t.role}: {t.content}" for t in turns)
    return (
        f"Somebody was asked:\n\n{talk}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        f"Which answer is {criterion}? Reply with A or B and nothing else."
    )
