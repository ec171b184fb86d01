"""RM-Bench: three styles of each chosen and rejected response, compared in a 3 × 3 matrix.

The metrics are those of the published evaluation (Liu et al. 2024, https://arxiv.org/abs/2410.16184). A pair
is easy if the chosen response has the fancier style, hard if the rejected one has it, else normal. Domains
count equally; safety is the mean of its two parts. A tie counts as wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from app.data.pairs import BadRowHandler
from app.data.public_datasets import RM_BENCH_STYLES
from app.errors import DataError
from app.evaluate.accuracy import Float64Array, Stratum, bootstrap_strata
from app.evaluate.suites.questions import ItemScores, Question, read_questions, split_by_subset

DOMAINS = ("chat", "math", "code", "safety")
STYLES = len(RM_BENCH_STYLES)
LEVELS = {
    "easy": np.tri(STYLES, k=-1, dtype=bool),
    "normal": np.eye(STYLES, dtype=bool),
    "hard": ~np.tri(STYLES, dtype=bool),
}
"""The cells of the matrix that belong to each level; rows are styles of the chosen response."""


def read(source: str, on_bad_row: BadRowHandler | None = None) -> list[Question]:
    """Return the questions; the subset of a question is its domain."""
    questions = []
    for question in read_questions(source, "domain", on_bad_row):
        if len(question.chosen) == len(question.rejected) == STYLES:
            questions.append(question)
            continue
        error = DataError(f"question {question.id!r}: RM-Bench has {STYLES} chosen and rejected responses")
        if on_bad_row is None:
            raise error
        on_bad_row(error)
    return questions


def measure(questions: Sequence[Question], scores: ItemScores) -> dict[str, Any]:
    """Return the accuracy on each level of every domain and of the whole benchmark, and the matrix."""
    parts = split_by_subset(questions)
    matrices = {
        part: np.stack([compare_styles(question, scores) for question in rows])
        for part, rows in parts.items()
    }
    groups = {part: [question.group for question in rows] for part, rows in parts.items()}
    weights = _weigh_parts(list(parts))
    domains = dict.fromkeys(sorted(map(_domain_of, parts), key=_order))
    rows = {domain: [part for part in parts if _domain_of(part) == domain] for domain in domains}
    rows |= {part: [part] for part in parts if part not in domains}
    return {
        "total": _measure_levels(list(parts), matrices, groups, weights),
        "domains": {
            name: _measure_levels(members, matrices, groups, weights) for name, members in rows.items()
        },
        "matrix": sum(weights[part] * matrices[part].mean(0) for part in parts).tolist(),
        "styles": list(RM_BENCH_STYLES),
        "missing": [domain for domain in DOMAINS if domain not in domains],
    }


def compare_styles(question: Question, scores: ItemScores) -> Float64Array:
    """Return for each style of the chosen and of the rejected response whether the chosen one wins, 3 × 3."""
    chosen, rejected = (
        np.array([scores.rewards[item] for item in items]) for items in (question.chosen, question.rejected)
    )
    return (chosen[:, None] > rejected[None, :]).astype(np.float64)


def render(results: dict[str, Any]) -> list[Table]:
    """Render the results of `measure` for a terminal."""
    levels = Table("domain", *LEVELS, "average", "95 % interval", "prompts")
    for name, row in [*results["domains"].items(), ("total", results["total"])]:
        average = row["average"]
        interval = f"{average['ci_low']:.3f} to {average['ci_high']:.3f}"
        cells = [f"{row[level]['accuracy']:.3f}" for level in LEVELS]
        levels.add_row(name, *cells, f"{average['accuracy']:.3f}", interval, str(average["n"]))
    if results["missing"]:
        levels.caption = f"not in the file: {', '.join(results['missing'])}"
    matrix = Table("chosen \\ rejected", *results["styles"])
    for style, cells in zip(results["styles"], results["matrix"], strict=True):
        matrix.add_row(style, *(f"{cell:.3f}" for cell in cells))
    return [levels, matrix]


def _measure_levels(
    parts: list[str],
    matrices: dict[str, Float64Array],
    groups: dict[str, list[str]],
    weights: dict[str, float],
) -> dict[str, Any]:
    """Return the accuracy on all cells and on each level, as weighted means over parts of domains."""
    cells = {"average": np.ones((STYLES, STYLES), dtype=bool), **LEVELS}
    return {
        name: asdict(
            bootstrap_strata(
                [Stratum(matrices[part][:, mask].mean(1), groups[part], weights[part]) for part in parts]
            )
        )
        for name, mask in cells.items()
    }


def _weigh_parts(parts: list[str]) -> dict[str, float]:
    """Return the weight of each part of a domain: domains weigh the same, and so do the parts of one."""
    domains = [_domain_of(part) for part in parts]
    return {
        part: 1 / (len(set(domains)) * domains.count(domain))
        for part, domain in zip(parts, domains, strict=True)
    }


def _domain_of(part: str) -> str:
    """Return the domain of a part: safety-refuse and safety-response are parts of safety."""
    return part.partition("-")[0]


def _order(domain: str) -> tuple[int, str]:
    """Return the sort key of a domain: the published order, then any others by name."""
    return (DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS), domain)
