"""Plots a run: tokens per second by server and workload, and the share of requests answered in time."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

from app.evaluate.figures import COLOURS, MARKERS, STYLE
from benchmarks.report import Results
from benchmarks.summary_statistics import median_and_range

mpl.use("agg")
from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes  # the same
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # the same

ALL_MARKERS = MARKERS + "<>hX8pd"


def save_plot(results: Results, file: Path) -> None:
    """Write the plot; each server has a marker and a colour that the colour-blind can tell apart."""
    with mpl.rc_context(STYLE):
        height = 2 + 0.5 * max(len(results.closed_loop_workloads), 8)
        figure, (speed_axes, share_axes) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(3, 2))
        for i, peer in enumerate(results.peers):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": ALL_MARKERS[i % len(ALL_MARKERS)]}
            _plot_speeds(speed_axes, results, peer, {**style, "label": peer})
            _plot_shares_in_time(share_axes, results, peer, style)
        _label_axes(speed_axes, share_axes, results)
        figure.legend(loc="lower center", ncols=8, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        figure.savefig(file)
        plt.close(figure)


def _plot_speeds(axes: Axes, results: Results, peer: str, style: dict[str, Any]) -> None:
    """One point per workload with its range; peers are offset within the row of a workload."""
    offset = 0.8 * ((results.peers.index(peer) + 0.5) / len(results.peers) - 0.5)
    rows, medians, below, above = [], [], [], []
    for row, workload in enumerate(results.closed_loop_workloads):
        if speed := median_and_range(results.tokens_per_s_by_round(peer, workload).values()):
            rows.append(row + offset)
            medians.append(speed.median)
            below.append(speed.median - speed.minimum)
            above.append(speed.maximum - speed.median)
    axes.errorbar(medians, rows, xerr=(below, above), linestyle="", markersize=4, linewidth=1, **style)


def _plot_shares_in_time(axes: Axes, results: Results, peer: str, style: dict[str, Any]) -> None:
    points = sorted(
        (point.rate, point.share_in_time)
        for workload in results.workloads
        for measurement in results.measurements(peer, workload)
        for point in measurement.curve
    )
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1, markersize=4, **style)


def _label_axes(speed_axes: Axes, share_axes: Axes, results: Results) -> None:
    workloads = results.closed_loop_workloads
    speed_axes.set_yticks(range(len(workloads)), workloads)
    speed_axes.set_ylim(len(workloads) - 0.5, -0.5)
    rounds = max(
        len(results.measurements(peer, workload)) for peer in results.peers for workload in results.workloads
    )
    speed_axes.set(
        xscale="log", xlabel=f"tokens of scored items per second; median and range, n = {rounds} rounds"
    )
    speed_axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed_axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    speed_axes.xaxis.set_minor_formatter(NullFormatter())
    slo = results.facts["slo_s"]
    share_axes.set(xlabel="requests per second at random times", ylabel=f"share answered within {slo} s")
    share_axes.set_ylim(-0.02, 1.02)
