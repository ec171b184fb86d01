"""From what was heard to figures: rates, quantiles where there are enough answers, medians over rounds."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load_generator import LoadRun, Outcome

QUANTILES = (0.5, 0.9, 0.99, 0.999)
MIN_LATENCIES_BEYOND = 10


@dataclass(frozen=True, slots=True)
class MedianAndRange:
    """A median over rounds, and the least and the most."""

    median: float
    minimum: float
    maximum: float
    rounds: int

    def __format__(self, spec: str) -> str:
        """As in 1,108 [1,090-1,120]."""
        return f"{self.median:{spec}} [{self.minimum:{spec}}-{self.maximum:{spec}}]"


def median_and_range(values: Iterable[float]) -> MedianAndRange | None:
    """Of one value a round; None where nothing was measured."""
    found = list(values)
    if not found:
        return None
    return MedianAndRange(statistics.median(found), min(found), max(found), len(found))


def ratio_by_round(ours: dict[int, float], theirs: dict[int, float]) -> MedianAndRange | None:
    """Ours over theirs, round by round."""
    return median_and_range(ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n])


def latency_quantiles(seconds: Sequence[float]) -> dict[float, float]:
    """Those quantiles beyond which at least ten answers lie, and the median of however few."""
    known = [q for q in QUANTILES if len(seconds) * (1 - q) >= MIN_LATENCIES_BEYOND - 1e-9]
    wanted = known or QUANTILES[:1] if seconds else []
    return {q: float(np.quantile(seconds, q)) for q in wanted}


def good_latencies(run: LoadRun) -> list[float]:
    """Seconds each good answer took."""
    return [one.latency_s for one in run.records if one.outcome is Outcome.GOOD]


def count_outcomes(run: LoadRun) -> dict[str, int]:
    """How many requests came to which end."""
    return dict(Counter(str(one.outcome) for one in run.records))


def scored_lengths(run: LoadRun) -> list[int]:
    """Tokens of every pair that got its score."""
    return [tokens for one in run.records if one.outcome is Outcome.GOOD for tokens in one.item_lengths]


def share_in_time(run: LoadRun, slo: float) -> float:
    """Share of all requests that had a good answer within so many seconds."""
    return sum(took <= slo for took in good_latencies(run)) / len(run.records) if run.records else 0.0
