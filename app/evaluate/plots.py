"""Pictures of a report: colour-blind-safe, each labelled with what it shows, n and intervals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler

from app.evaluate.accuracy import Judged, outcomes, reliability

mpl.use("agg")
from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes  # the same

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "font.size": 9, "figure.dpi": 110, "svg.hashsalt": "sparserm",
}  # fmt: skip


def calibration(file: Path, judged: Judged, temperature: float, ece: float) -> None:
    """Said probability against what came true, in bins of equal mass."""
    said, true = outcomes(judged.margins, temperature)
    bins = reliability(said, true)
    with _picture(file) as axes:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--", label="perfect")
        for told, came, size in bins:
            spread = 1.96 * (max(came * (1 - came), 1e-9) / size) ** 0.5
            axes.errorbar(told, came, yerr=spread, color=COLOURS[0], marker="o", markersize=4, linewidth=1)
        axes.set(xlabel="said probability that A is preferred", ylabel="share in which A was preferred")
        axes.set_title(f"calibration: ECE {ece:.3f}, n = {len(judged.groups)} pairs, bars 95 %")
        axes.legend(frameon=False)


def length(file: Path, judged: Judged, found: Mapping[str, Any]) -> None:
    """Reward against response length, preferred and rejected apart."""
    with _picture(file) as axes:
        for side, name in enumerate(("preferred", "rejected")):
            tokens, rewards = judged.tokens[:, side].numpy(), judged.rewards[:, side].numpy()
            axes.scatter(tokens, rewards, s=6, alpha=0.35, marker=MARKERS[side], label=name, linewidths=0)
        axes.set(xscale="log", xlabel="response tokens", ylabel="reward")
        axes.set_title(
            f"length: Spearman within prompts {found['spearman']:+.2f}, n = {len(judged.groups)} pairs"
        )
        axes.legend(frameon=False)


def bars(file: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> None:
    """Accuracies with their intervals, one line each; the first is the model."""
    with _picture(file, height=0.6 + 0.28 * len(rows)) as axes:
        for at, (_, found) in enumerate(reversed(rows)):
            ours = at == len(rows) - 1
            reach = [[found["accuracy"] - found["ci_low"]], [found["ci_high"] - found["accuracy"]]]
            colour = COLOURS[0] if ours else COLOURS[6]
            axes.errorbar(found["accuracy"], at, xerr=reach, color=colour, marker="o", markersize=4)
            axes.annotate(f"{found['accuracy']:.3f}", (found["accuracy"], at + 0.2), fontsize=7, ha="center")
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        axes.axvline(rows[0][1]["accuracy"], color=COLOURS[0], linewidth=0.6, linestyle=":")
        axes.set(xlabel="pair accuracy, 95 % interval", title=title, ylim=(-0.6, len(rows) - 0.2))


def curves(
    file: Path, lines: Mapping[str, Mapping[str, Mapping[str, Any]]], labels: tuple[str, str, str]
) -> None:
    """Accuracy against a quantity, a line a method, with shaded intervals."""
    what, unit, title = labels
    with _picture(file) as axes:
        for at, (name, points) in enumerate(lines.items()):
            x = np.array([float(key) for key in points])
            rows = [points[key] for key in points]
            axes.plot(x, [r["accuracy"] for r in rows], marker=MARKERS[at], markersize=4, label=name)
            axes.fill_between(x, [r["ci_low"] for r in rows], [r["ci_high"] for r in rows], alpha=0.12)
        axes.set(xscale="log", xlabel=f"{what} ({unit})", ylabel="pair accuracy", title=title)
        ticks = sorted({float(key) for points in lines.values() for key in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)


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
def _picture(file: Path, *, height: float = 3.6) -> Iterator[Axes]:
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, height), layout="constrained")
        yield axes
        figure.savefig(file, metadata={"Software": None})
        plt.close(figure)
