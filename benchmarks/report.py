"""Reports the results of a run as Markdown tables and as JSON."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.results_log import (
    ENTRY,
    BareForward,
    CorrectnessResult,
    Measurement,
    ResultsLog,
    ServerStart,
)
from benchmarks.summary_statistics import (
    QUANTILES,
    MedianAndRange,
    latency_quantiles,
    median_and_range,
    ratio_by_round,
)
from benchmarks.workloads import WORKLOADS

# One item at a time, compared with transformers alone; and the workload that sharing is compared with.
SINGLE_ITEM_WORKLOAD = "unique-1"
UNSHARED_WORKLOAD = "unique-16"
QUANTILE_COLUMNS = ("p50 ms", "p90", "p99", "p99.9")
LEGEND = (
    "Tokens of scored items per second, whether computed or shared: medians over rounds. In brackets: how "
    "many times as fast SparseRM was in the same round (`ours-all` for `vllm-four`, `ours-16` for "
    "`vllm-16`). `~`: measured while the machine was not steady."
)


class Results:
    """The measurements of a run by peer, workload and round: the last steady one, else the last."""

    def __init__(self, log: ResultsLog) -> None:
        self.facts = log.header.facts
        self.starts = [entry for entry in log.entries if isinstance(entry, ServerStart)]
        self.bare_forward_s = median_and_range(
            entry.seconds for entry in log.entries if isinstance(entry, BareForward)
        )
        self.correctness = [entry for entry in log.entries if isinstance(entry, CorrectnessResult)]
        self.peers = list(dict.fromkeys(measurement.peer for measurement in log.measurements))
        self.workloads = list(dict.fromkeys(measurement.workload for measurement in log.measurements))
        self._by_round: dict[tuple[str, str], dict[int, Measurement]] = {}
        for measurement in sorted(log.measurements, key=lambda measurement: measurement.steady):
            by_round = self._by_round.setdefault((measurement.peer, measurement.workload), {})
            by_round[measurement.round] = measurement

    def measurements(self, peer: str, workload: str) -> list[Measurement]:
        """One measurement per round."""
        return list(self._by_round.get((peer, workload), {}).values())

    def tokens_per_s_by_round(self, peer: str, workload: str) -> dict[int, float]:
        """Tokens per second by round."""
        by_round = self._by_round.get((peer, workload), {})
        return {round_: measurement.tokens_per_s for round_, measurement in by_round.items()}

    def speed_ratio(self, peer: str, workload: str) -> MedianAndRange | None:
        """How many times as fast the peer that this one is compared with was, round by round."""
        others = {measurement.compared_with for measurement in self.measurements(peer, workload)} - {peer}
        if not others:
            return None
        return ratio_by_round(
            self.tokens_per_s_by_round(others.pop(), workload), self.tokens_per_s_by_round(peer, workload)
        )

    def summarise(
        self, peer: str, workload: str, read: Callable[[Measurement], float | None]
    ) -> MedianAndRange | None:
        """Summarise a value of each measurement over the rounds."""
        values = (read(measurement) for measurement in self.measurements(peer, workload))
        return median_and_range(value for value in values if value is not None)

    @property
    def closed_loop_workloads(self) -> list[str]:
        """The workloads without an open loop; open loops have a table of their own."""
        return [
            workload
            for workload in self.workloads
            if not any(
                measurement.curve for peer in self.peers for measurement in self.measurements(peer, workload)
            )
        ]

    @property
    def measured_combinations(self) -> list[tuple[str, str]]:
        """The measured (peer, workload) combinations, ordered by workload."""
        return [
            (peer, workload)
            for workload in self.workloads
            for peer in self.peers
            if (peer, workload) in self._by_round
        ]


def render_markdown(results: Results) -> str:
    """The whole report; the summary comes first, the table of everything last."""
    sections = [
        ("# Measured side by side", ["fact", "value"], list(map(list, results.facts.items()))),
        ("## Workloads", ["workload", "load"], _workload_rows(results)),
        (
            f"## Speed-up by shared prompts, over `{UNSHARED_WORKLOAD}` of the same server",
            *_sharing_table(results),
        ),
        (
            "## One item at a time",
            ["server", "p50 ms", "over the bare forward pass"],
            _single_item_rows(results),
        ),
        ("## Starts", ["server", "seconds to ready", "MiB after the first answers"], _start_rows(results)),
        ("## Requests at random times", *_open_loop_table(results)),
        ("## All measurements", *_full_table(results)),
    ]
    pages = [[title, "", *markdown_table(head, rows), ""] for title, head, rows in sections if rows]
    return "\n".join(line for page in [pages[0], render_summary(results), *pages[1:]] for line in page)


def render_summary(results: Results) -> list[str]:
    """The closed loops: tokens per second, and how many times as fast SparseRM was."""
    rows = [
        [workload, *(_summary_cell(results, peer, workload) for peer in results.peers)]
        for workload in results.closed_loop_workloads
    ]
    table = markdown_table(["workload", *results.peers], rows)
    return ["## Tokens per second", "", LEGEND, "", *table, ""]


def to_json(results: Results) -> dict[str, Any]:
    """The report as JSON, with the keys of the results file; latencies are reduced to quantiles."""
    measurements = [
        measurement
        for peer, workload in results.measured_combinations
        for measurement in results.measurements(peer, workload)
    ]
    return {
        "facts": dict(results.facts),
        "starts": [asdict(start) for start in results.starts],
        "bare_s": _range_json(results.bare_forward_s),
        "gates": [asdict(correctness) for correctness in results.correctness],
        "blocks": [_measurement_json(measurement) for measurement in measurements],
    }


def _measurement_json(measurement: Measurement) -> dict[str, Any]:
    content: dict[str, Any] = ENTRY.dump_python(measurement, by_alias=True)
    return content | {
        "latencies": latency_quantiles(measurement.latencies),
        "speed": measurement.tokens_per_s,
        "of_peak": measurement.share_of_peak,
    }


def _range_json(value: MedianAndRange | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"median": value.median, "least": value.minimum, "most": value.maximum, "rounds": value.rounds}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


def _summary_cell(results: Results, peer: str, workload: str) -> str:
    measurements, ratio = results.measurements(peer, workload), results.speed_ratio(peer, workload)
    if not measurements:
        return ""
    mark = "" if all(measurement.steady for measurement in measurements) else "~"
    speed = results.summarise(peer, workload, lambda measurement: measurement.tokens_per_s)
    return mark + (f"{speed.median:,.0f}" if speed else "") + (f" ({ratio.median:.2f})" if ratio else "")


def _workload_rows(results: Results) -> list[list[str]]:
    return [
        [workload.name, workload.description] for workload in WORKLOADS if workload.name in results.workloads
    ]


def _sharing_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The speed of grouped items over that of unique items, for each server."""
    grouped = [workload for workload in results.workloads if workload.startswith("groups")]
    rows = []
    for peer in results.peers:
        unshared = results.tokens_per_s_by_round(peer, UNSHARED_WORKLOAD)
        cells = [
            _format(ratio_by_round(results.tokens_per_s_by_round(peer, workload), unshared), ".2f")
            for workload in grouped
        ]
        rows += [[peer, *cells]] if any(cells) else []
    return ["server", *grouped], rows


def _single_item_rows(results: Results) -> list[list[str]]:
    """Median latencies; the first row is transformers alone."""
    if results.bare_forward_s is None:
        return []
    bare = results.bare_forward_s.median
    medians = [
        (peer, results.summarise(peer, SINGLE_ITEM_WORKLOAD, _median_latency)) for peer in results.peers
    ]
    rows = [
        [peer, f"{latency.median * 1e3:,.0f}", f"{latency.median / bare:.2f}"]
        for peer, latency in medians
        if latency
    ]
    return [["transformers, no server", f"{bare * 1e3:,.0f}", ""], *rows]


def _median_latency(measurement: Measurement) -> float | None:
    return latency_quantiles(measurement.latencies).get(0.5)


def _start_rows(results: Results) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(start.server for start in results.starts):
        starts = [start for start in results.starts if start.server == name]
        ready_s = median_and_range(start.ready_s for start in starts)
        resident_mib = median_and_range(start.resident_mib for start in starts)
        rows.append([name, _format(ready_s, ".1f"), _format(resident_mib, ",.0f")])
    return rows


def _open_loop_table(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            peer, f"{point.rate:.2f}", f"{point.share_in_time:.3f}", *_quantile_cells(point.quantiles),
            ", ".join(f"{count} {outcome}" for outcome, count in sorted(point.outcomes.items())),
        ]
        for peer, workload in results.measured_combinations
        for measurement in results.measurements(peer, workload)
        for point in measurement.curve
    ]  # fmt: skip
    share = f"share within {results.facts['slo_s']} s"
    return ["server", "requests/s", share, *QUANTILE_COLUMNS, "outcomes"], rows


def _full_table(results: Results) -> tuple[list[str], list[list[str]]]:
    head = [
        "workload", "server", "tokens/s", "ours over it", *QUANTILE_COLUMNS, "share of peak", "peak GFLOP/s",
        "server's CPU", "client's", "others'", "CPU s per 1,000 tokens", "max. MiB", "rounds",
    ]  # fmt: skip
    return head, [_full_row(results, peer, workload) for peer, workload in results.measured_combinations]


def _full_row(results: Results, peer: str, workload: str) -> list[str]:
    def cell(read: Callable[[Measurement], float | None], spec: str) -> str:
        return _format(results.summarise(peer, workload, read), spec)

    measurements = results.measurements(peer, workload)
    latencies = [latency for measurement in measurements for latency in measurement.latencies]
    return [
        workload, peer, cell(lambda m: m.tokens_per_s, ",.0f"),
        _format(results.speed_ratio(peer, workload), ".2f"), *_quantile_cells(latency_quantiles(latencies)),
        cell(lambda m: m.share_of_peak, ".2f"), cell(lambda m: sum(m.peaks) / 2, ".0f"),
        cell(lambda m: m.shares["server"], ".1%"), cell(lambda m: m.shares["client"], ".1%"),
        cell(lambda m: m.shares["others"], ".1%"), cell(lambda m: m.cpu_s_per_1000_tokens, ".2f"),
        cell(lambda m: m.resident_mib[1], ",.0f"), str(len(measurements)),
    ]  # fmt: skip


def _quantile_cells(quantiles: Mapping[float, float]) -> list[str]:
    return [f"{quantiles[q] * 1e3:,.0f}" if q in quantiles else "" for q in QUANTILES]


def _format(value: MedianAndRange | None, spec: str) -> str:
    return format(value, spec) if value else ""
