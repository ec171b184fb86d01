"""The summary that ends a training run: accuracy beside baselines, the worst weaknesses, and what to do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table

from app.evaluate.report_comparisons import format_accuracy
from app.evaluate.report_limitations import DESCRIPTIONS

Results = Mapping[str, Any]
MIN_SLICE_PAIRS = 20
"""Subsets of the test with fewer pairs are too small to count as a weakness."""
LENGTH_ADVICE = "request length_control with each score, or train a linear head with --length-debiasing 1"
MORE_PAIRS_ADVICE = "add training pairs of this kind"
ATTACK_ADVICE = (
    "train with a larger --augment, and do not pass --no-passages; watch the distance and the drift alert; "
    "`sparserm stress` measures all attacks on more pairs"
)
LIMITATION_ADVICE = {
    "facts": "do not use the rewards to tell true from false; verify facts elsewhere",
    "short_against_long": LENGTH_ADVICE,
    "benign_requests": "add pairs in which an answer to a harmless request is preferred to a refusal, or "
    "combine this model with one of helpfulness",
    "harmful_requests": "combine this model with one of safety (models/composites.toml)",
}


@dataclass(frozen=True, slots=True)
class Weakness:
    """Something the model gets wrong: in words, the share of wrong decisions, and what to do about it."""

    description: str
    wrong: float
    advice: str


def find_weaknesses(results: Results) -> list[Weakness]:
    """Return the worst weakness of each kind, an attack, a subset of the test and a file, worst first."""
    kinds = (_list_attacks(results), _list_slices(results), _list_limitations(results))
    worst = (max(kind, key=lambda weakness: weakness.wrong, default=None) for kind in map(list, kinds))
    weaknesses = [weakness for weakness in worst if weakness and weakness.wrong > 0]
    return sorted(weaknesses, key=lambda weakness: -weakness.wrong)


def render_summary(name: str, results: Results) -> RenderableType:
    """Return the summary of a training run for a terminal."""
    parts: list[RenderableType] = []
    if "test" in results:
        parts.append(_render_accuracy(name, results))
    if weaknesses := find_weaknesses(results):
        table = Table(Column("weakness", overflow="fold"), "wrong", Column("what to do", overflow="fold"))
        for weakness in weaknesses:
            table.add_row(weakness.description, f"{weakness.wrong:.0%}", weakness.advice)
        parts.append(table)
    return Group(*parts)


def _render_accuracy(name: str, results: Results) -> Table:
    test = results["test"]
    table = Table(Column(f"{test['n']} test pairs", no_wrap=True), "accuracy", "lead of the model")
    table.add_row(name, format_accuracy(test), "")
    for baseline, row in results["baselines"].items():
        table.add_row(baseline, format_accuracy(row), format_accuracy(row["lead"], sign=True))
    return table


def _list_attacks(results: Results) -> Iterator[Weakness]:
    sample = results.get("attack_sample", {"attacks": {}})
    for name, share in sample["attacks"].items():
        description = f"attack on {sample['n']} pairs: {name} lets a rejected response overtake"
        yield Weakness(description, share, ATTACK_ADVICE)


def _list_slices(results: Results) -> Iterator[Weakness]:
    test = results.get("test")
    if not test:
        return
    slices = {name: (row, MORE_PAIRS_ADVICE) for name, row in test["slices"].items()}
    slices["chosen is longer"] = (test["length"]["chosen_longer"], LENGTH_ADVICE)
    slices["chosen is shorter"] = (test["length"]["chosen_shorter"], LENGTH_ADVICE)
    for name, (row, advice) in slices.items():
        if row and row["n"] >= MIN_SLICE_PAIRS:
            yield Weakness(f"test pairs: {name}", 1 - row["accuracy"], advice)


def _list_limitations(results: Results) -> Iterator[Weakness]:
    for name, row in results.get("limitations", {}).items():
        title = DESCRIPTIONS.get(name, name.replace("_", " "))
        yield Weakness(title, 1 - row["accuracy"], LIMITATION_ADVICE.get(name, MORE_PAIRS_ADVICE))
