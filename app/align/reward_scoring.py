"""Rewards of exchanges, by whichever judge: the engine here, or a server; asked anew in every round."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from app.errors import SparseRMError
from app.offline.scorers import RowScorer
from app.types import Item

AT_ONCE = 256


class Verdict(NamedTuple):
    """A reward, and where that is known how far the response is from the reward model's home."""

    reward: float
    distance: float | None = None


Scorer = Callable[[Sequence[Item]], list[Verdict]]


def scorer(call: Callable[[], AbstractContextManager[RowScorer]]) -> Scorer:
    """Call a judge whenever something is to be scored: so it is the reward model as it is then."""

    def scored(exchanges: Sequence[Item]) -> list[Verdict]:
        unique = list(dict.fromkeys(exchanges))
        found: dict[Item, Verdict] = {}
        with call() as judge:
            for at in range(0, len(unique), AT_ONCE):
                some = unique[at : at + AT_ONCE]
                answers = judge.score(judge.prepare([(one,) for one in some]))
                for exchange, answer in zip(some, answers, strict=True):
                    if isinstance(answer, SparseRMError):
                        raise answer
                    found[exchange] = Verdict(answer[0]["reward"], answer[0]["distance"])
        return [found[one] for one in exchanges]

    return scored
