"""The figures of a report as a page's section, between two marks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.errors import DataError

Row = dict[str, Any]
NAMES = {
    "implicit accuracy": "implicit-reward accuracy", "mc1": "MC1", "mc2": "MC2", "reward": "reward",
    "held-out reward": "gold reward", "tokens": "tokens",
}  # fmt: skip


def write(page: Path, found: Row) -> None:
    """Put a task's figures where the page has room for them."""
    name = found["task"]
    room = re.compile(f"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    text = page.read_text()
    if not room.search(text):
        raise DataError(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->")
    lines = "\n".join(section(found))
    page.write_text(room.sub(lambda marks: f"{marks[1]}{lines}\n{marks[2]}", text))


def section(found: Row) -> Iterator[str]:
    """All that a report says, in Markdown."""
    study, sizes = found["study"], found["preset"]
    names = [name for name in NAMES if name in next(iter(study["arms"].values()))]
    yield (
        f"Seeds: {sizes['seeds']}; rounds: {sizes['rounds']}, of {sizes['per_round']} prompts. "
        f"Test: {study['pairs']} pairs, {study['questions']} questions, {study['answers']} answers. "
        "In brackets 95 % intervals over prompts; below each mean, the lead over no filter.\n"
    )
    yield f"| filter | pairs kept | {' | '.join(NAMES[name] for name in names)} | KL |"
    yield "|---|---|" + "---|" * (len(names) + 1)
    start = " | ".join(_cell(study["start"][name]) for name in names)
    yield f"| (the start) | | {start} | 0 |"
    for arm, row in study["arms"].items():
        kept = [pairs["kept"] for seed in row["pairs"] for pairs in seed]
        cells = " | ".join(f"{_cell(row[name])}<br>{_cell(row[name]['lead'], '+.3f')}" for name in names)
        kl = sum(row["kl"]) / len(row["kl"])
        yield f"| {arm} | {sum(kept) / len(kept):.0f} | {cells} | {kl:.3f} |"
    means = "; ".join(f"{arm} {_by_seed(row)}" for arm, row in study["arms"].items())
    yield f"\nImplicit-reward accuracy of each seed alone: {means}."
    agreement = ", ".join(f"{name} {_cell(row)}" for name, row in study["reward models"].items())
    yield f"\nThe reward models themselves, on the same test pairs: {agreement}.\n"
    yield from _best(found["best of n"])


def _by_seed(row: Row) -> str:
    return ", ".join(f"{mean:.3f}" for mean in row["implicit accuracy"]["seeds"])


def _best(curve: Row) -> Iterator[str]:
    low, high = curve["peak_interval"]
    yield (
        f"Best of n by SparseRM's reward on {curve['prompts']} prompts, in deviations within prompts: the "
        f"gold reward peaks at n = {curve['peak']} [{low}, {high}].\n"
    )
    yield f"| n | {' | '.join(map(str, curve['n']))} |"
    yield "|---|" + "---|" * len(curve["n"])
    for name in ("reward", "gold"):
        yield f"| {name} | {' | '.join(_cell(one, '+.2f') for one in curve[name])} |"


def _cell(found: Row, how: str = ".3f") -> str:
    return f"{found['mean']:{how}} [{found['ci_low']:{how}}, {found['ci_high']:{how}}]"
