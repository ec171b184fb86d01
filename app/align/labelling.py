"""Labelling: which of two responses is preferred, by the policy itself, the data, or the reward."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Completion, Conversation
from app.align.reward_functions import RewardFunction
from app.types import Item, Message, Pair

ANSWER_LETTERS = ("A", "B")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two responses to a prompt, the preferred one first, and the lead by which the labeller prefers it."""

    messages: Conversation
    chosen: Completion
    rejected: Completion
    lead: float

    @property
    def items(self) -> tuple[Item, Item]:
        """The item with the preferred response, then the item with the rejected one."""
        return Item(self.messages, self.chosen.response), Item(self.messages, self.rejected.response)

    @property
    def row(self) -> dict[str, Any]:
        """The pair as a JSON row."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "LabelledPair":
        """Return the pair that a JSON row describes."""
        messages = tuple(Message(**message) for message in row["messages"])
        return cls(messages, Completion(**row["chosen"]), Completion(**row["rejected"]), row["lead"])


def label_by_data(pairs: Sequence[Pair]) -> list[LabelledPair]:
    """Return the pairs of the data set; all of their responses count as finished."""
    return [
        LabelledPair(
            pair.messages,
            Completion(pair.chosen, finished=True),
            Completion(pair.rejected, finished=True),
            lead=0.0,
        )
        for pair in pairs
    ]


def label_by_reward(
    compute_rewards: RewardFunction,
    prompts: Sequence[Conversation],
    completions: Sequence[Sequence[Completion]],
) -> list[LabelledPair]:
    """Return a pair for each prompt: its response with the highest reward and that with the lowest.

    Prompts whose responses are all the same give no pair.
    """
    items = [
        Item(prompt, completion.response)
        for prompt, candidates in zip(prompts, completions, strict=True)
        for completion in candidates
    ]
    item_rewards = iter(compute_rewards(items))
    pairs = []
    for prompt, candidates in zip(prompts, completions, strict=True):
        rewards = [next(item_rewards).reward for _ in candidates]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if candidates[best].response != candidates[worst].response:
            lead = rewards[best] - rewards[worst]
            pairs.append(LabelledPair(prompt, candidates[best], candidates[worst], lead))
    return pairs


def label_by_policy(
    policy: SequenceLogprobs,
    prompts: Sequence[Conversation],
    completions: Sequence[Sequence[Completion]],
    *,
    criterion: str,
    progress: Callable[[float], None],
) -> list[LabelledPair]:
    """Compare each prompt's responses two by two by asking the policy which one fulfils the criterion.

    It is asked in both orders, so that a bias for the first letter cancels out.
    """
    comparisons = [
        (prompt, first, second)
        for prompt, candidates in zip(prompts, completions, strict=True)
        for first, second in zip(candidates[::2], candidates[1::2], strict=False)
        if first.response != second.response
    ]
    answers = [
        Item((Message("user", _format_question(prompt, a.response, b.response, criterion)),), letter)
        for prompt, first, second in comparisons
        for a, b in ((first, second), (second, first))
        for letter in ANSWER_LETTERS
    ]
    logprobs = iter(float(tokens[:-1].sum()) for tokens in policy.compute(answers, progress))
    pairs = []
    for prompt, first, second in comparisons:
        a, b, swapped_a, swapped_b = (next(logprobs) for _ in range(4))
        lead = (a - b + swapped_b - swapped_a) / 2
        chosen, rejected = (first, second) if lead >= 0 else (second, first)
        pairs.append(LabelledPair(prompt, chosen, rejected, abs(lead)))
    return pairs


def _format_question(prompt: Conversation, first: str, second: str, criterion: str) -> str:
    """Return the question that the policy is asked about two responses."""
    lines = [f"{message.role}: {message.content}" for message in prompt]
    conversation = prompt[0].content if len(prompt) == 1 else "\n".join(lines)
    return (
        f"Somebody was asked:\n\n{conversation}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        f"Which answer is {criterion}? Reply with A or B and nothing else."
    )
