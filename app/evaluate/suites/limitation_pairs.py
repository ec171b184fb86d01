"""Pairs that show what a reward model cannot be relied on for, written for this project and packaged with it.

Each file of the folder is a test of its own: the model's accuracy on it is reported beside that of a
preference for the longer response and, where training pairs are at hand, of TF-IDF.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Column, Table
from torch import Tensor

from app.data.pairs import BadRowHandler, read_pairs
from app.errors import DataError
from app.evaluate.accuracy import Float64Array, ScoredPairs, bootstrap_mean, pair_wins
from app.evaluate.baselines import length_margins
from app.evaluate.suites.questions import ItemScores, Question
from app.types import Pair

FOLDER = Path(__file__).with_name("limitations")
LONGER_WINS = "longer response wins"
TFIDF = "TF-IDF of the response"


def read_limitations(folder: Path, on_bad_row: BadRowHandler | None = None) -> dict[str, list[Pair]]:
    """Return the pairs of each file in a folder, by the name of the file."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(f"no .jsonl files in {folder}")
    return {file.stem: read_pairs(file, on_bad_row) for file in files}


def read(source: str, on_bad_row: BadRowHandler | None = None) -> list[Question]:
    """Return the pairs of the files in a folder as questions; the subset of a question is its file."""
    return [
        Question(f"{name}:{index}", name, pair.group, pair.items[:1], pair.items[1:])
        for name, pairs in read_limitations(Path(source), on_bad_row).items()
        for index, pair in enumerate(pairs, 1)
    ]


def measure(questions: Sequence[Question], scores: ItemScores) -> dict[str, Any]:
    """Return the accuracy on each file, as `measure_files` does, from the scores of a model."""
    rewards = torch.tensor(
        [[scores.rewards[item] for item in question.items] for question in questions], dtype=torch.float64
    )
    token_counts = torch.tensor(
        [[scores.token_counts[item] for item in question.items] for question in questions]
    )
    pairs = ScoredPairs(rewards, token_counts, [question.group for question in questions])
    return {"files": measure_files([question.subset for question in questions], pairs, {})}


def measure_files(
    names: Sequence[str], pairs: ScoredPairs, baselines: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Return the accuracy of a model and of baselines on the pairs of each file.

    `names` has the file of each pair, `baselines` the margins of methods other than the response length.
    """
    margins = {LONGER_WINS: length_margins(pairs.token_counts), **baselines}
    longer = margins[LONGER_WINS].sign().numpy()
    wins, groups, files = pair_wins(pairs.margins), np.array(pairs.groups), np.array(names)
    baseline_wins = {baseline: pair_wins(values) for baseline, values in margins.items()}

    def average(values: Float64Array, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any] | None:
        return asdict(bootstrap_mean(values[mask], list(groups[mask]))) if mask.any() else None

    return {
        name: {
            **(average(wins, files == name) or {}),
            "chosen_longer": average(wins, (files == name) & (longer > 0)),
            "chosen_shorter": average(wins, (files == name) & (longer < 0)),
            "baselines": {
                baseline: average(values, files == name) for baseline, values in baseline_wins.items()
            },
        }
        for name in dict.fromkeys(names)
    }


def render(results: dict[str, Any]) -> list[Table]:
    """Render the results of `measure` for a terminal."""
    table = Table(
        Column("file", no_wrap=True),
        "accuracy",
        "95 % interval",
        "pairs",
        "chosen longer",
        "shorter",
        LONGER_WINS,
    )
    for name, row in results["files"].items():
        parts = (row["chosen_longer"], row["chosen_shorter"], row["baselines"][LONGER_WINS])
        table.add_row(
            name.replace("_", " "),
            f"{row['accuracy']:.3f}",
            f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
            str(row["n"]),
            *(f"{part['accuracy']:.3f}" if part else "" for part in parts),
        )
    return [table]
