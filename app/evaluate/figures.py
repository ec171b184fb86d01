"""Pictures of a report: a plain title, what n and the bars are below it, names beside what they name.

Colours are Okabe and Ito's, which the colour-blind can tell apart; shapes and labels say the same again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

mpl.use("agg")
from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes  # the same

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"
QUIET = "#555555"
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "font.size": 9, "figure.dpi": 110, "svg.hashsalt": "sparserm",
}  # fmt: skip
GAP = 0.055
PERCENT = PercentFormatter(1, decimals=0, symbol=None)
Row = Mapping[str, Any]


def calibration(file: Path, test: Row) -> None:
    """How sure it is against how often it is right, in bins of equal mass."""
    note = f"n = {test['n']:,} test pairs, bars: 95 % intervals, calibration error {test['ece']:.3f}"
    with _picture(file, "Is it right as often as it says?", note) as axes:
        axes.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle="--")
        along: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
        axes.text(0.6, 0.612, "exactly as said", color=QUIET, ha="center", **along)
        _bars(axes, test["reliability"], ("said", "came"), COLOURS[0], MARKERS[0])
        axes.set(xlabel="how likely it says people prefer the same response (%)")
        axes.set(ylabel="how often they did (%)", xlim=(0.49, 1.01))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PERCENT)


def length(file: Path, test: Row) -> None:
    """Mean reward of responses as long as each other, preferred and rejected apart."""
    note = f"n = {test['n']:,} test pairs, bars: 95 % intervals, rank correlation within a prompt "
    note += f"{test['length']['spearman']:+.2f}"
    with _picture(file, "Do longer responses get higher rewards?", note) as axes:
        ends = {}
        for at, (side, rows) in enumerate(test["by_length"].items()):
            _bars(axes, rows, ("tokens", "reward"), COLOURS[at], MARKERS[at], linestyle="-")
            ends[side] = (rows[-1]["tokens"], rows[-1]["reward"], COLOURS[at])
        _name(axes, ends)
        axes.set(xscale="log", xlabel="tokens of the response (log scale)")
        axes.set(ylabel="mean reward (deviations of training responses)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())


def bars(file: Path, rows: Sequence[tuple[str, Row]], title: str, note: str) -> None:
    """Accuracies with their intervals, one line each; the first is the model."""
    with _picture(file, title, note, height=1.2 + 0.28 * len(rows)) as axes:
        for at, (_, found) in enumerate(reversed(rows)):
            ours = at == len(rows) - 1
            reach = [[found["accuracy"] - found["ci_low"]], [found["ci_high"] - found["accuracy"]]]
            look: dict[str, Any] = {"color": COLOURS[0 if ours else 6], "marker": MARKERS[0 if ours else 1]}
            axes.errorbar(found["accuracy"], at, xerr=reach, markersize=4, **look)
            axes.annotate(f"{found['accuracy']:.1%}", (found["accuracy"], at + 0.2), fontsize=7, ha="center")
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        axes.axvline(rows[0][1]["accuracy"], color=COLOURS[0], linewidth=0.6, linestyle=":")
        axes.set(xlabel="test pairs ranked as people did (%)", ylim=(-0.6, len(rows) - 0.2))
        axes.xaxis.set_major_formatter(PERCENT)


def curves(file: Path, lines: Mapping[str, Mapping[str, Row]], what: str, title: str, note: str) -> None:
    """Accuracy against a quantity, a line a method, named where it ends, with shaded intervals."""
    with _picture(file, title, note) as axes:
        ends = {}
        for at, (name, points) in enumerate(lines.items()):
            x, rows = [float(key) for key in points], list(points.values())
            y, low, high = ([row[key] for row in rows] for key in ("accuracy", "ci_low", "ci_high"))
            axes.plot(x, y, marker=MARKERS[at], markersize=4, color=COLOURS[at])
            axes.fill_between(x, low, high, alpha=0.12, color=COLOURS[at])
            ends[name] = (x[-1], y[-1], COLOURS[at])
        axes.set(xscale="log", xlabel=f"{what} (log scale)", ylabel="test pairs ranked as people did (%)")
        axes.yaxis.set_major_formatter(PERCENT)
        ticks = sorted({float(key) for points in lines.values() for key in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        _name(axes, ends)


def _bars(
    axes: Axes, rows: Sequence[Row], keys: tuple[str, str], colour: str, marker: str, linestyle: str = ""
) -> None:
    """Points with their intervals."""
    x, y = ([row[key] for row in rows] for key in keys)
    reach = [
        [row[keys[1]] - row["ci_low"] for row in rows],
        [row["ci_high"] - row[keys[1]] for row in rows],
    ]
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1}
    axes.errorbar(x, y, yerr=reach, linestyle=linestyle, **look)


def _name(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write a line's name where it ends, in its colour, far enough from the names below."""
    low, high = axes.get_ylim()
    least = low
    right = max(x for x, _, _ in ends.values())
    for name, (_, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        least = max(y, least)
        place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (right, least), color=colour, annotation_clip=False, **place)
        least += GAP * (high - low)


def rounds(file: Path, panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], title: str) -> None:
    """One figure a panel against the rounds of a run, with shaded intervals where there are any."""
    shown = {name: lines for name, lines in panels.items() if lines}
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.2), layout="constrained")
        for axes, (name, lines) in zip(grid, shown.items(), strict=True):
            for at, (line, points) in enumerate(lines.items()):
                x = range(len(points))
                axes.plot(x, [p["mean"] for p in points], marker=MARKERS[at], markersize=4, label=line)
                if points[0]["ci_low"] is not None:
                    low, high = ([p[end] for p in points] for end in ("ci_low", "ci_high"))
                    axes.fill_between(x, low, high, alpha=0.12)
            axes.set(xlabel="round", title=name, xticks=range(len(points)))
            if len(lines) > 1:
                axes.legend(frameon=False, fontsize=8)
        figure.suptitle(title)
        figure.savefig(file, metadata={"Software": None})
        plt.close(figure)


@contextmanager
def _picture(file: Path, title: str, note: str, *, height: float = 3.8) -> Iterator[Axes]:
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        axes.set_title(note, loc="left", fontsize=8, color=QUIET)
        yield axes
        figure.savefig(file, metadata={"Software": None} if file.suffix == ".png" else None)
        plt.close(figure)
