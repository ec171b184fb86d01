"""Rewards of the assistant's turns of a conversation, and how they add up to the reward of the response."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from app.reward.explanations import RewardNumbers
from app.types import AssistantTurn, ScoredTurn


def build_scored_turns(
    baseline: float, turns: Iterable[tuple[AssistantTurn, RewardNumbers]]
) -> tuple[ScoredTurn, ...]:
    """Return the turns of one conversation with their rewards and the changes between them."""
    return compute_changes(
        baseline,
        [
            ScoredTurn(turn.message, numbers.reward, numbers.uncertainty, numbers.length_correction)
            for turn, numbers in turns
        ],
    )


def compute_changes(baseline: float, turns: Sequence[ScoredTurn]) -> tuple[ScoredTurn, ...]:
    """Return the turns with the `change` of each from the one before; of the first, from the baseline.

    After every turn, reward == baseline + sum of changes so far + length_correction - penalty.
    """
    rewards = [turn.reward - turn.length_correction + turn.penalty for turn in turns]
    return tuple(
        replace(turn, change=after - before)
        for turn, before, after in zip(turns, [baseline, *rewards], rewards, strict=False)
    )
