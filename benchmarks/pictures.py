"""A run in one picture: how fast each server was under each workload, and how many answers came in time."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

from app.evaluate.plots import COLOURS, MARKERS, STYLE
from benchmarks.figures import spread
from benchmarks.report import Results

mpl.use("agg")
from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes  # the same


def draw(results: Results, file: Path) -> None:
    """Write the picture; colours the colour-blind can tell apart, and a marker for each server."""
    with mpl.rc_context(STYLE):
        height = 1.5 + 0.35 * max(len(results.closed), 8)
        figure, (speeds, shares) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(3, 2))
        for place, peer in enumerate(results.peers):
            look = _look(peer, place)
            _speeds(speeds, results, peer, look)
            _shares(shares, results, peer, look)
        _dress(speeds, shares, results)
        figure.tight_layout()
        figure.savefig(file)
        plt.close(figure)


def _speeds(axes: Axes, results: Results, peer: str, look: dict[str, Any]) -> None:
    rows, middles, below, above = [], [], [], []
    for row, workload in enumerate(results.closed):
        if found := spread(results.speeds(peer, workload).values()):
            rows.append(row)
            middles.append(found.median)
            below.append(found.median - found.least)
            above.append(found.most - found.median)
    axes.errorbar(middles, rows, xerr=(below, above), linestyle="", markersize=5, **look)


def _shares(axes: Axes, results: Results, peer: str, look: dict[str, Any]) -> None:
    points = sorted((p.rate, p.share_in_time) for block in results.blocks(peer, "open") for p in block.curve)
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1, markersize=4, **look)


def _dress(speeds: Axes, shares: Axes, results: Results) -> None:
    speeds.set_yticks(range(len(results.closed)), results.closed)
    speeds.invert_yaxis()
    speeds.set(xscale="log", xlabel="tokens of answered pairs a second, median and range over rounds")
    speeds.legend(frameon=False, fontsize=7, ncols=2)
    slo = results.facts.get("slo_s", "")
    shares.set(xlabel="requests a second at random moments", ylabel=f"share answered within {slo} s")
    shares.set_ylim(-0.02, 1.02)


def _look(peer: str, place: int) -> dict[str, Any]:
    markers = MARKERS + "<>hX8pd"
    return {"color": COLOURS[place % len(COLOURS)], "marker": markers[place % len(markers)], "label": peer}
