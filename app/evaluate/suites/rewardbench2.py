"""RewardBench 2: best-of-4 accuracy of five subsets, and the score of the subset Ties.

The metrics are those of the published evaluation (Malik et al. 2025, https://arxiv.org/abs/2506.01937). In
Ties, `tied:N` is a question with several correct responses and `ref:N` one with a single correct response;
they are scored together.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.table import Table

from app.data.pairs import BadRowHandler
from app.errors import DataError
from app.evaluate.accuracy import Float64Array, Stratum, bootstrap_mean, bootstrap_strata
from app.evaluate.suites.questions import ItemScores, Question, read_questions, split_by_subset
from app.types import Item

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
TIES = "Ties"
TIES_WEIGHTS = {
    "tied_accuracy": 0.3,
    "reference_accuracy": 0.3,
    "spread_within_margin": 0.2,
    "spread_within_both_margins": 0.2,
    "relative_margin": 0.01,
}
"""The parts of the score of Ties and their weights, as published."""


def read(source: str, on_bad_row: BadRowHandler | None = None) -> list[Question]:
    """Return the questions; in Ties, both questions of a prompt have its number as their group."""
    return [
        replace(question, group=question.id.rpartition(":")[2]) if question.subset == TIES else question
        for question in read_questions(source, "subset", on_bad_row)
    ]


def measure(questions: Sequence[Question], scores: ItemScores) -> dict[str, Any]:
    """Return the score of every subset and of the whole benchmark, the mean of its subsets."""
    subsets = split_by_subset(questions)
    strata: dict[str, Stratum] = {}
    results: dict[str, Any] = {}
    for name in sorted(subsets, key=_order):
        if name == TIES:
            groups, parts = score_ties(subsets[name], scores)
            results["ties"] = {part: float(values.mean()) for part, values in parts.items()}
            total = sum(TIES_WEIGHTS[part] * values for part, values in parts.items())
            strata[name] = Stratum(np.asarray(total), groups)
        else:
            wins = np.array([score_best_of(question, scores) for question in subsets[name]])
            strata[name] = Stratum(wins, [question.group for question in subsets[name]])
    return {
        "score": asdict(bootstrap_strata(list(strata.values()))),
        "subsets": {name: asdict(bootstrap_mean(s.values, s.groups)) for name, s in strata.items()},
        "missing": [name for name in SUBSETS if name not in strata],
        **results,
    }


def score_best_of(question: Question, scores: ItemScores) -> float:
    """Return 1 if the correct response has the highest reward; if k responses share that reward, 1 / k."""
    rewards = [scores.rewards[item] for item in question.items]
    return 1 / rewards.count(max(rewards)) if rewards[0] == max(rewards) else 0.0


def score_ties(
    questions: Sequence[Question], scores: ItemScores
) -> tuple[list[str], dict[str, Float64Array]]:
    """Return the prompts of Ties and each part of their scores; the keys are those of `TIES_WEIGHTS`.

    The margin of a question is the lowest reward of a correct response minus the highest of an incorrect one;
    the spread of a tied question is the range of the rewards of its correct responses.
    """
    references, tied = _pair_ties(questions)
    reference_margins = np.array([_margin(question, scores) for question in references])
    margins = np.array([_margin(question, scores) for question in tied])
    spreads = np.array([np.ptp(_rewards(question.chosen, scores)) for question in tied])
    smaller = np.minimum(margins, reference_margins)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.nan_to_num(np.tanh(smaller / spreads - 1), nan=0.0)
    parts = (margins > 0, reference_margins > 0, margins > spreads, smaller > spreads, relative)
    return [question.group for question in tied], {
        name: part.astype(np.float64) for name, part in zip(TIES_WEIGHTS, parts, strict=True)
    }


def render(results: dict[str, Any]) -> list[Table]:
    """Render the results of `measure` for a terminal."""
    table = Table("subset", "score", "95 % interval", "prompts")
    for name, row in [*results["subsets"].items(), ("mean of the subsets", results["score"])]:
        interval = f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
        table.add_row(name, f"{row['accuracy']:.3f}", interval, str(row["n"]))
    captions = []
    if results["missing"]:
        captions.append(f"not in the file: {', '.join(results['missing'])}")
    if "ties" in results:
        captions.append(
            "Ties: " + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in results["ties"].items())
        )
    table.caption = "\n".join(captions)
    return [table]


def _order(subset: str) -> tuple[int, str]:
    """Return the sort key of a subset: the published order, then any others by name."""
    return (SUBSETS.index(subset) if subset in SUBSETS else len(SUBSETS), subset)


def _pair_ties(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Return the reference and the tied question of each prompt of Ties, in the same order."""
    kinds: dict[str, dict[str, Question]] = {"ref": {}, "tied": {}}
    for question in questions:
        kind = question.id.partition(":")[0]
        if kind not in kinds:
            raise DataError(f"question {question.id!r}: ids in Ties are ref:NUMBER or tied:NUMBER")
        kinds[kind][question.group] = question
    if unpaired := kinds["ref"].keys() ^ kinds["tied"].keys():
        raise DataError(f"Ties: prompt {min(unpaired)} has only one of its two questions, ref and tied")
    return [kinds["ref"][group] for group in kinds["tied"]], list(kinds["tied"].values())


def _margin(question: Question, scores: ItemScores) -> float:
    return float(_rewards(question.chosen, scores).min() - _rewards(question.rejected, scores).max())


def _rewards(items: Sequence[Item], scores: ItemScores) -> Float64Array:
    return np.array([scores.rewards[item] for item in items], dtype=np.float64)
