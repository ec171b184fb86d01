"""What an offline run does with each row: how it is parsed, and which columns its scores become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from app.data import pairs
from app.types import Item

Row = Mapping[str, Any]
RowItems = tuple[Item, ...]
ResultRow = Mapping[str, Any]  # an entry of `data` in a response of /v1/rewards or /v1/compare
Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """What is computed for every row.

    `read` parses a row into items of one conversation; its second argument is the row's location, for
    errors. A paired task compares the two items of a row; any other task gets a reward for each item.
    `write` turns these results into new columns, or returns None to drop the row. `columns` are the names of
    all new columns. `parameters` are the numbers that `write` depends on.
    """

    name: str
    read: Callable[[Row, str], RowItems]
    write: Callable[[RowItems, Sequence[ResultRow]], Columns | None]
    columns: tuple[str, ...]
    paired: bool = False
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairFilter:
    """Which pairs `sparserm filter` keeps; by default those whose chosen response is not scored lower."""

    min_margin: float = 0.0
    max_uncertainty: float = inf
    max_distance: float = 100.0

    def accepts(self, comparison: ResultRow) -> bool:
        """Return whether a comparison is within all limits."""
        certain = bool(comparison["uncertainty"] <= self.max_uncertainty)
        close = bool(comparison["distance"] <= self.max_distance)
        return certain and close and bool(comparison["margin"] >= self.min_margin)


def filter_task(pair_filter: PairFilter) -> Task:
    """Return the task that keeps the pairs a filter accepts, with the columns of `compare`."""

    def write(items: RowItems, results: Sequence[ResultRow]) -> Columns | None:
        return _write_comparison(items, results) if pair_filter.accepts(results[0]) else None

    return Task("filter", _read_pair, write, COMPARE_COLUMNS, paired=True, parameters=asdict(pair_filter))


def _read_item(row: Row, location: str) -> RowItems:
    return (pairs.parse_item(row, location),)


def _read_pair(row: Row, location: str) -> RowItems:
    return pairs.parse_pair(row, location).items


def _write_score(_: RowItems, results: Sequence[ResultRow]) -> Columns:
    (reward,) = results
    return {name: reward[name] for name in SCORE_COLUMNS[:-1]} | _features_column(reward)


def _write_comparison(_: RowItems, results: Sequence[ResultRow]) -> Columns:
    (comparison,) = results
    return {name: comparison[name] for name in COMPARE_COLUMNS[:-1]} | _features_column(comparison)


def _write_ranking(items: RowItems, results: Sequence[ResultRow]) -> Columns:
    """Return the best and the worst response and the order of all; of equal rewards the first is better."""
    rewards = [result["reward"] for result in results]
    order = sorted(range(len(results)), key=lambda i: -rewards[i])
    best, worst = order[0], order[-1]
    return {
        "chosen": items[best].response,
        "rejected": items[worst].response if len(items) > 1 else None,
        "margin": rewards[best] - rewards[worst],
        "order": order,
        "rewards": rewards,
        "uncertainties": [result["uncertainty"] for result in results],
        "distances": [result["distance"] for result in results],
        "truncated": any(result["truncated"] for result in results),
    } | _features_column(results[best])


def _features_column(result: ResultRow) -> Columns:
    """Return the column `features`; no column if the result lists no features."""
    names = ("model", "id", "label", "contribution")
    features = [{name: feature[name] for name in names} for feature in result["features"]]
    return {"features": features} if features else {}


SCORE_COLUMNS = ("reward", "uncertainty", "percentile", "distance", "truncated", "features")
COMPARE_COLUMNS = (
    "margin", "probability", "chosen_reward", "rejected_reward", "uncertainty", "distance", "truncated",
    "features",
)  # fmt: skip
RANK_COLUMNS = (
    "chosen", "rejected", "margin", "order", "rewards", "uncertainties", "distances", "truncated", "features",
)  # fmt: skip
SCORE = Task("score", _read_item, _write_score, SCORE_COLUMNS)
COMPARE = Task("compare", _read_pair, _write_comparison, COMPARE_COLUMNS, paired=True)
RANK = Task("rank", pairs.parse_candidate_items, _write_ranking, RANK_COLUMNS)
