"""A run in one picture: how fast each server was under each workload, and how many answers came in time."""

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

SHAPES = MARKERS + "<>hX8pd"


def draw(results: Results, file: Path) -> None:
    """Write the picture; colours the colour-blind can tell apart, and a marker for each server."""
    with mpl.rc_context(STYLE):
        height = 2 + 0.5 * max(len(results.closed), 8)
        figure, (speeds, shares) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(3, 2))
        for place, peer in enumerate(results.peers):
            look = {"color": COLOURS[place % len(COLOURS)], "marker": SHAPES[place % len(SHAPES)]}
            _speeds(speeds, results, peer, {**look, "label": peer})
            _shares(shares, results, peer, look)
        _dress(speeds, shares, results)
        figure.legend(loc="lower center", ncols=8, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        figure.savefig(file)
        plt.close(figure)


def _speeds(axes: Axes, results: Results, peer: str, look: dict[str, Any]) -> None:
    """One below the other within the row of a workload."""
    aside = 0.8 * ((results.peers.index(peer) + 0.5) / len(results.peers) - 0.5)
    rows, middles, below, above = [], [], [], []
    for row, workload in enumerate(results.closed):
        if found := median_and_range(results.speeds(peer, workload).values()):
            rows.append(row + aside)
            middles.append(found.median)
            below.append(found.median - found.minimum)
            above.append(found.maximum - found.median)
    axes.errorbar(middles, rows, xerr=(below, above), linestyle="", markersize=4, linewidth=1, **look)


def _shares(axes: Axes, results: Results, peer: str, look: dict[str, Any]) -> None:
    points = sorted(
        (point.rate, point.share_in_time)
        for workload in results.workloads
        for block in results.blocks(peer, workload)
        for point in block.curve
    )
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1, markersize=4, **look)


def _dress(speeds: Axes, shares: Axes, results: Results) -> None:
    speeds.set_yticks(range(len(results.closed)), results.closed)
    speeds.set_ylim(len(results.closed) - 0.5, -0.5)
    rounds = max(len(results.blocks(peer, one)) for peer in results.peers for one in results.workloads)
    speeds.set(
        xscale="log", xlabel=f"tokens of answered pairs a second; median and range, n = {rounds} rounds"
    )
    speeds.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speeds.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    speeds.xaxis.set_minor_formatter(NullFormatter())
    slo = results.facts["slo_s"]
    shares.set(xlabel="requests a second at random moments", ylabel=f"share answered within {slo} s")
    shares.set_ylim(-0.02, 1.02)
