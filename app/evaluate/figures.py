"""Figures of the reports. Each has a plain title, a note with n and the kind of interval, and direct labels.

The colours are the palette of Okabe and Ito, which colour-blind readers can tell apart. Markers and labels
carry the same information as the colours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

mpl.use("agg")
from matplotlib import pyplot as plt  # imported after the backend is selected
from matplotlib.axes import Axes  # imported after the backend is selected

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"
MUTED = "#555555"
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "font.size": 9, "figure.dpi": 110, "svg.hashsalt": "sparserm",
}  # fmt: skip
MIN_LABEL_GAP = 0.055
"""Vertical distance between two curve labels as a share of the axis; smaller gaps let them overlap."""

PERCENT = PercentFormatter(1, decimals=0, symbol=None)
Row = Mapping[str, Any]


def draw_report_figures(folder: Path, results: Row) -> None:
    """Draw every figure for which the results contain the measurements."""
    if "test" in results:
        _draw_test_figures(folder, results)
    if "ablation" in results:
        _draw_ablation_figures(folder, results)


def _draw_test_figures(folder: Path, results: Row) -> None:
    test = results["test"]
    rows = [("SparseRM", test), *results["baselines"].items()]
    note = f"n = {test['n']:,} test pairs of unseen prompts, bars: 95 % intervals"
    draw_bars(folder / "accuracy.png", rows, "Agreement with human preferences", note)
    draw_calibration(folder / "calibration.png", test)
    draw_length(folder / "length.png", test)


def _draw_ablation_figures(folder: Path, results: Row) -> None:
    ablation, data_curves = results["ablation"], dict(results["ablation"]["data"])
    note = f"n = {ablation['n']:,} test pairs, {ablation['seeds']} seeds, 95 % intervals"
    data_note = note
    draw_bars(folder / "variants.png", list(ablation["variants"].items()), "Variants of the method", note)
    if "standard" in results:
        sizes = results["standard"]["sizes"]
        data_curves["StandardRM"] = {size: row["standard"] for size, row in sizes.items()}
        data_note += "; StandardRM: one seed"
    draw_curves(
        folder / "data.png", data_curves, "training pairs", "Accuracy by number of training pairs", data_note
    )
    draw_curves(
        folder / "directions.png", ablation["directions"], "directions of each sign",
        "Accuracy by number of directions", note,
    )  # fmt: skip


def draw_calibration(file: Path, test: Row) -> None:
    """Draw observed agreement against predicted probability, in bins with equal numbers of pairs."""
    note = f"n = {test['n']:,} test pairs, bars: 95 % intervals, calibration error {test['ece']:.3f}"
    with _figure(file, "Predicted probability and observed agreement", note) as axes:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle="--")
        text_style: dict[str, Any] = {
            "rotation": 45,
            "rotation_mode": "anchor",
            "transform_rotates_text": True,
        }
        axes.text(0.6, 0.612, "perfect calibration", color=MUTED, ha="center", **text_style)
        _plot_points(axes, test["reliability"], ("said", "came"), COLOURS[0], MARKERS[0])
        axes.set(xlabel="predicted probability of the response it prefers (%)")
        axes.set(ylabel="pairs in which people agree (%)", xlim=(0.49, 1.01))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PERCENT)


def draw_length(file: Path, test: Row) -> None:
    """Draw the mean reward of responses of similar length, separately for preferred and rejected ones."""
    note = f"n = {test['n']:,} test pairs, bars: 95 % intervals, rank correlation within a prompt "
    note += f"{test['length']['spearman']:+.2f}"
    with _figure(file, "Mean reward by response length", note) as axes:
        ends = {}
        for index, (side, rows) in enumerate(test["by_length"].items()):
            _plot_points(axes, rows, ("tokens", "reward"), COLOURS[index], MARKERS[index], linestyle="-")
            ends[side] = (rows[-1]["tokens"], rows[-1]["reward"], COLOURS[index])
        _label_curves(axes, ends)
        axes.set(xscale="log", xlabel="tokens of the response (log scale)")
        axes.set(ylabel="mean reward (standard deviations)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())


def draw_bars(file: Path, rows: Sequence[tuple[str, Row]], title: str, note: str) -> None:
    """Draw accuracies with their intervals, one model per line. The first row is the reference model."""
    with _figure(file, title, note, height=1.2 + 0.28 * len(rows)) as axes:
        for index, (_, row) in enumerate(reversed(rows)):
            is_reference = index == len(rows) - 1
            interval = [[row["accuracy"] - row["ci_low"]], [row["ci_high"] - row["accuracy"]]]
            style: dict[str, Any] = {
                "color": COLOURS[0 if is_reference else 6], "marker": MARKERS[0 if is_reference else 1],
            }  # fmt: skip
            axes.errorbar(row["accuracy"], index, xerr=interval, markersize=4, **style)
            axes.annotate(f"{row['accuracy']:.1%}", (row["accuracy"], index + 0.2), fontsize=7, ha="center")
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        axes.axvline(rows[0][1]["accuracy"], color=COLOURS[0], linewidth=0.6, linestyle=":")
        axes.set(xlabel="test pairs ranked as people did (%)", ylim=(-0.6, len(rows) - 0.2))
        axes.xaxis.set_major_formatter(PERCENT)


def draw_curves(
    file: Path, curves: Mapping[str, Mapping[str, Row]], quantity: str, title: str, note: str
) -> None:
    """Draw accuracy against a quantity, one labelled curve per method, with shaded intervals."""
    with _figure(file, title, note) as axes:
        ends = {}
        for index, (name, points) in enumerate(curves.items()):
            x, rows = [float(key) for key in points], list(points.values())
            y, low, high = ([row[key] for row in rows] for key in ("accuracy", "ci_low", "ci_high"))
            axes.plot(x, y, marker=MARKERS[index], markersize=4, color=COLOURS[index])
            axes.fill_between(x, low, high, alpha=0.12, color=COLOURS[index])
            ends[name] = (x[-1], y[-1], COLOURS[index])
        axes.set(xscale="log", xlabel=f"{quantity} (log scale)", ylabel="test pairs ranked as people did (%)")
        axes.yaxis.set_major_formatter(PERCENT)
        ticks = sorted({float(key) for points in curves.values() for key in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        _label_curves(axes, ends)


def draw_rounds(file: Path, panels: Mapping[str, Mapping[str, Sequence[Row]]], title: str) -> None:
    """Draw one panel per metric against the rounds of an alignment run, with shaded intervals if known."""
    non_empty = {name: curves for name, curves in panels.items() if curves}
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(non_empty), figsize=(3.2 * len(non_empty), 3.2), layout="constrained"
        )
        for axes, (name, curves) in zip(grid, non_empty.items(), strict=True):
            _draw_panel(axes, name, curves)
        figure.suptitle(title)
        figure.savefig(file, metadata={"Software": None})
        plt.close(figure)


def _draw_panel(axes: Axes, title: str, curves: Mapping[str, Sequence[Row]]) -> None:
    for index, (label, points) in enumerate(curves.items()):
        x = range(len(points))
        axes.plot(x, [p["mean"] for p in points], marker=MARKERS[index], markersize=4, label=label)
        if points[0]["ci_low"] is not None:
            low, high = ([p[end] for p in points] for end in ("ci_low", "ci_high"))
            axes.fill_between(x, low, high, alpha=0.12)
    axes.set(xlabel="round", title=title, xticks=range(len(points)))
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def _plot_points(
    axes: Axes, rows: Sequence[Row], keys: tuple[str, str], colour: str, marker: str, linestyle: str = ""
) -> None:
    """Plot points with their intervals; `keys` name the x and the y value of a row."""
    x, y = ([row[key] for row in rows] for key in keys)
    intervals = [
        [row[keys[1]] - row["ci_low"] for row in rows],
        [row["ci_high"] - row[keys[1]] for row in rows],
    ]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1}
    axes.errorbar(x, y, yerr=intervals, linestyle=linestyle, **style)


def _label_curves(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write the name of each curve beside its last point, in its colour; move it up if two would overlap."""
    low, high = axes.get_ylim()
    min_y = low
    right = max(x for x, _, _ in ends.values())
    for name, (_, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        label_y = max(y, min_y)
        position: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (right, label_y), color=colour, annotation_clip=False, **position)
        min_y = label_y + MIN_LABEL_GAP * (high - low)


@contextmanager
def _figure(file: Path, title: str, note: str, *, height: float = 3.8) -> Iterator[Axes]:
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        axes.set_title(note, loc="left", fontsize=8, color=MUTED)
        yield axes
        figure.savefig(file, metadata={"Software": None} if file.suffix == ".png" else None)
        plt.close(figure)
