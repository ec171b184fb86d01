"""From what was heard to figures: rates, quantiles where there are enough answers, medians over rounds."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load import Fate, Run

QUANTILES = (0.5, 0.9, 0.99, 0.999)
BEYOND = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds, and the least and the most."""

    median: float
    least: float
    most: float
    rounds: int

    def __format__(self, spec: str) -> str:
        """As in 1,108 [1,090-1,120]."""
        return f"{self.median:{spec}} [{self.least:{spec}}-{self.most:{spec}}]"


def spread(values: Iterable[float]) -> Spread | None:
    """Of one value a round; None where nothing was measured."""
    found = list(values)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """Ours over theirs, round by round."""
    return spread(ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n])


def quantiles(seconds: Sequence[float]) -> dict[float, float]:
    """Those quantiles beyond which at least ten answers lie, and the median of however few."""
    known = [q for q in QUANTILES if len(seconds) * (1 - q) >= BEYOND - 1e-9]
    wanted = known or QUANTILES[:1] if seconds else []
    return {q: float(np.quantile(seconds, q)) for q in wanted}


def good(run: Run) -> list[float]:
    """Seconds each good answer took."""
    return [one.took for one in run.heard if one.fate is Fate.GOOD]


def fates(run: Run) -> dict[str, int]:
    """How many requests came to which end."""
    return dict(Counter(str(one.fate) for one in run.heard))


def lengths(run: Run) -> list[int]:
    """Tokens of every pair that got its score."""
    return [tokens for one in run.heard if one.fate is Fate.GOOD for tokens in one.lengths]


def in_time(run: Run, slo: float) -> float:
    """Share of all requests that had a good answer within so many seconds."""
    return sum(took <= slo for took in good(run)) / len(run.heard) if run.heard else 0.0
