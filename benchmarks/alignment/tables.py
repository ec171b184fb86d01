"""Renders a report as a section of a Markdown page, between two markers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.errors import DataError

Row = dict[str, Any]
METRIC_NAMES = {
    "implicit accuracy": "implicit-reward accuracy", "mc1": "MC1", "mc2": "MC2", "reward": "reward",
    "held-out reward": "gold reward", "tokens": "tokens",
}  # fmt: skip


def write_section(page: Path, report: Row) -> None:
    """Replace the text between the markers of the report's task."""
    task = report["task"]
    section = re.compile(f"(<!-- {re.escape(task)} -->\n).*?(<!-- /{re.escape(task)} -->)", re.DOTALL)
    text = page.read_text()
    if not section.search(text):
        raise DataError(f"{page} has no marks <!-- {task} --> and <!-- /{task} -->; add them to the page")
    lines = "\n".join(render_section(report))
    page.write_text(section.sub(lambda markers: f"{markers[1]}{lines}\n{markers[2]}", text))


def render_section(report: Row) -> Iterator[str]:
    """The lines of the section."""
    study, sizes = report["study"], report["preset"]
    metrics = [metric for metric in METRIC_NAMES if metric in next(iter(study["arms"].values()))]
    yield (
        f"Seeds: {sizes['seeds']}; rounds: {sizes['rounds']}, of {sizes['per_round']} prompts. "
        f"Test: {study['pairs']} pairs, {study['questions']} questions, {study['answers']} answers. "
        "In brackets 95 % intervals over prompts; below each mean, the difference from no filter.\n"
    )
    yield from _arms_table(study, metrics)
    means = "; ".join(f"{arm} {_means_by_seed(row)}" for arm, row in study["arms"].items())
    yield f"\nImplicit-reward accuracy of each seed: {means}."
    accuracies = ", ".join(f"{name} {_format_interval(row)}" for name, row in study["reward models"].items())
    yield f"\nAccuracy of the reward models on the same test pairs: {accuracies}.\n"
    yield from _best_of_n_table(report["best of n"])


def _arms_table(study: Row, metrics: list[str]) -> Iterator[str]:
    yield f"| filter | pairs kept | {' | '.join(METRIC_NAMES[metric] for metric in metrics)} | KL |"
    yield "|---|---|" + "---|" * (len(metrics) + 1)
    start = " | ".join(_format_interval(study["start"][metric]) for metric in metrics)
    yield f"| (the start) | | {start} | 0 |"
    for arm, row in study["arms"].items():
        kept = [pairs["kept"] for seed in row["pairs"] for pairs in seed]
        cells = " | ".join(
            f"{_format_interval(row[metric])}<br>{_format_interval(row[metric]['lead'], '+.3f')}"
            for metric in metrics
        )
        kl = sum(row["kl"]) / len(row["kl"])
        yield f"| {arm} | {sum(kept) / len(kept):.0f} | {cells} | {kl:.3f} |"


def _means_by_seed(row: Row) -> str:
    return ", ".join(f"{mean:.3f}" for mean in row["implicit accuracy"]["seeds"])


def _best_of_n_table(curve: Row) -> Iterator[str]:
    low, high = curve["peak_interval"]
    yield (
        f"Best of n by SparseRM's reward on {curve['prompts']} prompts, in standard deviations within "
        f"prompts: the gold reward peaks at n = {curve['peak']} [{low}, {high}].\n"
    )
    yield f"| n | {' | '.join(map(str, curve['n']))} |"
    yield "|---|" + "---|" * len(curve["n"])
    for name in ("reward", "gold"):
        yield f"| {name} | {' | '.join(_format_interval(row, '+.2f') for row in curve[name])} |"


def _format_interval(interval: Row, spec: str = ".3f") -> str:
    return f"{interval['mean']:{spec}} [{interval['ci_low']:{spec}}, {interval['ci_high']:{spec}}]"
