"""Reward functions of an alignment run: rewards of items from an engine in this process or from a server."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from app.errors import SparseRMError
from app.offline.scorers import RowScorer
from app.types import Item

CHUNK_ITEMS = 256


class ItemReward(NamedTuple):
    """The reward of an item and, if known, the percentile of its distance from the training data."""

    reward: float
    distance: float | None = None


RewardFunction = Callable[[Sequence[Item]], list[ItemReward]]


def make_reward_function(open_scorer: Callable[[], AbstractContextManager[RowScorer]]) -> RewardFunction:
    """Return a function that opens a scorer for each call.

    So each call uses the reward model as it is at that time, even if it was retrained after a round.
    """

    def compute_rewards(items: Sequence[Item]) -> list[ItemReward]:
        unique = list(dict.fromkeys(items))
        rewards: dict[Item, ItemReward] = {}
        with open_scorer() as scorer:
            for start in range(0, len(unique), CHUNK_ITEMS):
                chunk = unique[start : start + CHUNK_ITEMS]
                results = scorer.score(scorer.prepare([(item,) for item in chunk]))
                for item, result in zip(chunk, results, strict=True):
                    if isinstance(result, SparseRMError):
                        raise result
                    rewards[item] = ItemReward(result[0]["reward"], result[0]["distance"])
        return [rewards[item] for item in items]

    return compute_rewards
