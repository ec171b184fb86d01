"""What can be asked of every row: how it is read, and which columns its rewards become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from app.data import pairs
from app.types import Item

Row = Mapping[str, Any]
RowItems = tuple[Item, ...]
Body = Mapping[str, Any]
Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A question to every row.

    `read` takes a row apart, at a place, into exchanges of one conversation. Where `paired`, its two get one
    comparison, else each gets a reward. `write` makes of these the new columns, or None to drop the row.
    """

    name: str
    read: Callable[[Row, str], RowItems]
    write: Callable[[RowItems, Sequence[Body]], Columns | None]
    columns: tuple[str, ...]
    paired: bool = False
    choices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which pairs a filter keeps; by default those whose preferred response is not scored lower."""

    min_margin: float = 0.0
    max_uncertainty: float = inf
    max_distance: float = 100.0

    def keeps(self, one: Body) -> bool:
        """Whether a comparison passes."""
        surely = bool(one["uncertainty"] <= self.max_uncertainty)
        return surely and one["margin"] >= self.min_margin and one["distance"] <= self.max_distance


def filtered(rule: Rule) -> Task:
    """Keep the pairs that pass."""

    def write(item: RowItems, found: Sequence[Body]) -> Columns | None:
        return _compared(item, found) if rule.keeps(found[0]) else None

    return Task("filter", _pair, write, COMPARED, paired=True, choices=asdict(rule))


def _exchange(row: Row, place: str) -> RowItems:
    return (pairs.exchange(row, place),)


def _pair(row: Row, place: str) -> RowItems:
    return pairs.pair(row, place).items


def _scored(_: RowItems, found: Sequence[Body]) -> Columns:
    (one,) = found
    return {name: one[name] for name in SCORED[:-1]} | _features(one)


def _compared(_: RowItems, found: Sequence[Body]) -> Columns:
    (one,) = found
    return {name: one[name] for name in COMPARED[:-1]} | _features(one)


def _ranked(item: RowItems, found: Sequence[Body]) -> Columns:
    """The best and the worst of them, and all in order; of equal ones the first is the better."""
    rewards = [one["reward"] for one in found]
    order = sorted(range(len(found)), key=lambda i: -rewards[i])
    best, worst = order[0], order[-1]
    return {
        "chosen": item[best].response,
        "rejected": item[worst].response if len(item) > 1 else None,
        "margin": rewards[best] - rewards[worst],
        "order": order,
        "rewards": rewards,
        "uncertainties": [one["uncertainty"] for one in found],
        "distances": [one["distance"] for one in found],
        "truncated": any(one["truncated"] for one in found),
    } | _features(found[best])


def _features(one: Body) -> Columns:
    """The features that were asked for, if any were."""
    kept = ("model", "id", "label", "contribution")
    found = [{name: feature[name] for name in kept} for feature in one["features"]]
    return {"features": found} if found else {}


SCORED = ("reward", "uncertainty", "percentile", "distance", "truncated", "features")
COMPARED = (
    "margin", "probability", "chosen_reward", "rejected_reward", "uncertainty", "distance", "truncated",
    "features",
)  # fmt: skip
RANKED = (
    "chosen", "rejected", "margin", "order", "rewards", "uncertainties", "distances", "truncated", "features",
)  # fmt: skip
SCORE = Task("score", _exchange, _scored, SCORED)
COMPARE = Task("compare", _pair, _compared, COMPARED, paired=True)
RANK = Task("rank", pairs.choices, _ranked, RANKED)
