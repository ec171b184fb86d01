"""Summary statistics of load runs: latency quantiles, outcome counts, and medians over rounds."""

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
    """The median, minimum and maximum over rounds."""

    median: float
    minimum: float
    maximum: float
    rounds: int

    def __format__(self, spec: str) -> str:
        """Format as `1,108 [1,090-1,120]`."""
        return f"{self.median:{spec}} [{self.minimum:{spec}}-{self.maximum:{spec}}]"


def median_and_range(values: Iterable[float]) -> MedianAndRange | None:
    """Summarise one value per round; None if there is no value."""
    rounds = list(values)
    if not rounds:
        return None
    return MedianAndRange(statistics.median(rounds), min(rounds), max(rounds), len(rounds))


def ratio_by_round(ours: dict[int, float], theirs: dict[int, float]) -> MedianAndRange | None:
    """Summarise ours / theirs over the rounds that both have."""
    return median_and_range(ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n])


def latency_quantiles(seconds: Sequence[float]) -> dict[float, float]:
    """The quantiles with at least ten latencies beyond them; with fewer latencies only the median."""
    known = [q for q in QUANTILES if len(seconds) * (1 - q) >= MIN_LATENCIES_BEYOND - 1e-9]
    shown = known or QUANTILES[:1] if seconds else []
    return {q: float(np.quantile(seconds, q)) for q in shown}


def good_latencies(run: LoadRun) -> list[float]:
    """The latency of each successful request, in seconds."""
    return [record.latency_s for record in run.records if record.outcome is Outcome.GOOD]


def count_outcomes(run: LoadRun) -> dict[str, int]:
    """The number of requests per outcome."""
    return dict(Counter(str(record.outcome) for record in run.records))


def scored_lengths(run: LoadRun) -> list[int]:
    """The token count of every item that was scored."""
    return [
        tokens for record in run.records if record.outcome is Outcome.GOOD for tokens in record.item_lengths
    ]


def share_in_time(run: LoadRun, slo_s: float) -> float:
    """The share of all requests that succeeded within `slo_s` seconds."""
    in_time = sum(latency <= slo_s for latency in good_latencies(run))
    return in_time / len(run.records) if run.records else 0.0
