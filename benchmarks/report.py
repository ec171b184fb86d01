"""What a run found, as tables for people and as JSON for machines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.results_log import BareForward, CorrectnessResult, Measurement, ResultsLog, ServerStart
from benchmarks.summary_statistics import (
    QUANTILES,
    MedianAndRange,
    latency_quantiles,
    median_and_range,
    ratio_by_round,
)
from benchmarks.workloads import WORKLOADS

ALONE, BASE = "unique-1", "unique-16"
TIMES = ("p50 ms", "p90", "p99", "p99.9")
LEGEND = (
    "Tokens of answered pairs a second, whether computed or shared: medians over rounds. In brackets how "
    "many times as fast SparseRM was in the same round (`ours-all` for `vllm-four`, `ours-16` for "
    "`vllm-16`). `~`: measured while the machine was not steady."
)


class Results:
    """The blocks of a run, by peer, workload and round: the last steady one, else the last."""

    def __init__(self, journal: ResultsLog) -> None:
        self.facts = journal.header.facts
        self.starts = [one for one in journal.entries if isinstance(one, ServerStart)]
        self.bare = median_and_range(one.seconds for one in journal.entries if isinstance(one, BareForward))
        self.gates = [one for one in journal.entries if isinstance(one, CorrectnessResult)]
        self.peers = list(dict.fromkeys(one.peer for one in journal.measurements))
        self.workloads = list(dict.fromkeys(one.workload for one in journal.measurements))
        self._rounds: dict[tuple[str, str], dict[int, Measurement]] = {}
        for block in sorted(journal.measurements, key=lambda one: one.steady):
            self._rounds.setdefault((block.peer, block.workload), {})[block.round] = block

    def blocks(self, peer: str, workload: str) -> list[Measurement]:
        """One a round."""
        return list(self._rounds.get((peer, workload), {}).values())

    def speeds(self, peer: str, workload: str) -> dict[int, float]:
        """Tokens a second, by round."""
        return {n: block.tokens_per_s for n, block in self._rounds.get((peer, workload), {}).items()}

    def ratio(self, peer: str, workload: str) -> MedianAndRange | None:
        """How much faster the one it is set against was, round by round."""
        others = {block.compared_with for block in self.blocks(peer, workload)} - {peer}
        if not others:
            return None
        return ratio_by_round(self.speeds(others.pop(), workload), self.speeds(peer, workload))

    def spread(
        self, peer: str, workload: str, of: Callable[[Measurement], float | None]
    ) -> MedianAndRange | None:
        """Over rounds, of something a block knows."""
        found = (of(block) for block in self.blocks(peer, workload))
        return median_and_range(value for value in found if value is not None)

    @property
    def closed(self) -> list[str]:
        """Workloads without those at random moments, which have a table of their own."""
        return [w for w in self.workloads if not any(b.curve for p in self.peers for b in self.blocks(p, w))]

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Peers and workloads, a workload's peers together."""
        return [(p, w) for w in self.workloads for p in self.peers if (p, w) in self._rounds]


def markdown(results: Results) -> str:
    """Everything, shortest first."""
    parts = [
        ("# Measured side by side", ["what", "which"], list(map(list, results.facts.items()))),
        ("## Workloads", ["workload", "how it asks"], _asked(results)),
        ("## What sharing prompts buys, over `unique-16` of the same server", *_sharing(results)),
        ("## One pair alone", ["server", "p50 ms", "over the bare forward"], _alone(results)),
        ("## Starts", ["server", "seconds to ready", "MiB after the first answers"], _starts(results)),
        ("## Requests at random moments", *_open(results)),
        ("## Everything", *_everything(results)),
    ]
    pages = [[title, "", *table(head, rows), ""] for title, head, rows in parts if rows]
    return "\n".join(line for page in [pages[0], summary(results), *pages[1:]] for line in page)


def summary(results: Results) -> list[str]:
    """Tokens a second, and how many times faster SparseRM was, where voices wait for answers."""
    rows = [[name, *(_cell(results, peer, name) for peer in results.peers)] for name in results.closed]
    return ["## Tokens a second", "", LEGEND, "", *table(["workload", *results.peers], rows), ""]


def as_json(results: Results) -> dict[str, Any]:
    """The same; of latencies, the quantiles."""
    blocks = [block for peer, workload in results.measured for block in results.blocks(peer, workload)]
    return {
        "facts": dict(results.facts),
        "starts": [asdict(one) for one in results.starts],
        "bare_s": asdict(results.bare) if results.bare else None,
        "gates": [asdict(one) for one in results.gates],
        "blocks": [
            asdict(block)
            | {
                "latencies": latency_quantiles(block.latencies),
                "speed": block.tokens_per_s,
                "of_peak": block.share_of_peak,
            }
            for block in blocks
        ],
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


def _cell(results: Results, peer: str, workload: str) -> str:
    blocks, ratio = results.blocks(peer, workload), results.ratio(peer, workload)
    if not blocks:
        return ""
    mark = "" if all(block.steady for block in blocks) else "~"
    found = results.spread(peer, workload, lambda block: block.tokens_per_s)
    return mark + (f"{found.median:,.0f}" if found else "") + (f" ({ratio.median:.2f})" if ratio else "")


def _asked(results: Results) -> list[list[str]]:
    return [[one.name, one.description] for one in WORKLOADS if one.name in results.workloads]


def _sharing(results: Results) -> tuple[list[str], list[list[str]]]:
    """Groups over unique pairs of the same peer."""
    grouped = [name for name in results.workloads if name.startswith("groups")]
    rows = []
    for peer in results.peers:
        alone = results.speeds(peer, BASE)
        found = [_said(ratio_by_round(results.speeds(peer, name), alone), ".2f") for name in grouped]
        rows += [[peer, *found]] if any(found) else []
    return ["server", *grouped], rows


def _alone(results: Results) -> list[list[str]]:
    """The first row is the bare forward."""
    if results.bare is None:
        return []
    bare = results.bare.median
    middles = [(peer, results.spread(peer, ALONE, _middle)) for peer in results.peers]
    rows = [[peer, f"{one.median * 1e3:,.0f}", f"{one.median / bare:.2f}"] for peer, one in middles if one]
    return [["transformers, no server", f"{bare * 1e3:,.0f}", ""], *rows]


def _middle(block: Measurement) -> float | None:
    return latency_quantiles(block.latencies).get(0.5)


def _starts(results: Results) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(one.server for one in results.starts):
        mine = [one for one in results.starts if one.server == name]
        ready, held = (
            median_and_range(one.ready_s for one in mine),
            median_and_range(one.resident_mib for one in mine),
        )
        rows.append([name, _said(ready, ".1f"), _said(held, ",.0f")])
    return rows


def _open(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            peer, f"{point.rate:.2f}", f"{point.share_in_time:.3f}", *_times(point.quantiles),
            ", ".join(f"{count} {fate}" for fate, count in sorted(point.outcomes.items())),
        ]
        for peer, workload in results.measured
        for block in results.blocks(peer, workload)
        for point in block.curve
    ]  # fmt: skip
    return ["server", "requests/s", f"share within {results.facts['slo_s']} s", *TIMES, "ends"], rows


def _everything(results: Results) -> tuple[list[str], list[list[str]]]:
    head = [
        "workload", "server", "tokens/s", "ours over it", *TIMES, "of the peak", "peak GFLOP/s",
        "server's CPU", "client's", "others'", "CPU s a 1,000 tokens", "MiB at most", "rounds",
    ]  # fmt: skip
    return head, [_row(results, peer, workload) for peer, workload in results.measured]


def _row(results: Results, peer: str, workload: str) -> list[str]:
    def over(of: Callable[[Measurement], float | None], spec: str) -> str:
        return _said(results.spread(peer, workload, of), spec)

    blocks = results.blocks(peer, workload)
    return [
        workload, peer, over(lambda block: block.tokens_per_s, ",.0f"), _said(results.ratio(peer, workload), ".2f"),
        *_times(latency_quantiles([took for block in blocks for took in block.latencies])),
        over(lambda block: block.share_of_peak, ".2f"), over(lambda block: sum(block.peaks) / 2, ".0f"),
        over(lambda block: block.shares["server"], ".1%"), over(lambda block: block.shares["client"], ".1%"),
        over(lambda block: block.shares["others"], ".1%"), over(lambda block: block.cpu_s_per_1000_tokens, ".2f"),
        over(lambda block: block.resident_mib[1], ",.0f"), str(len(blocks)),
    ]  # fmt: skip


def _times(found: Mapping[float, float]) -> list[str]:
    return [f"{found[q] * 1e3:,.0f}" if q in found else "" for q in QUANTILES]


def _said(found: MedianAndRange | None, spec: str) -> str:
    return format(found, spec) if found else ""
