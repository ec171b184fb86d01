"""`python -m benchmarks.research.reader_agreement`: how well readers understand the shipped models.

Readers saw the names, definitions and effects of a model's concepts, and texts, but no numbers. In contrasts
they said which of two responses each of the five strongest concepts favours; for edits, whether the reward
rises. The figures are the shares of their answers that agree with the models as they are now.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from app.cli import common
from app.evaluate.accuracy import bootstrap_mean
from app.reward import loading
from app.reward.engine import Engine
from app.reward.explanation.concepts import subtract_concepts
from app.reward.explanation.why import CLEAR_LEAD
from app.scores import Score, ScoredItem
from app.types import Item, Message, ScoreJob, ScoreOptions

FOLDER = Path("tests/data/explanations")
app = typer.Typer(add_completion=False)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer of a reader: the model it is about, its contrast or edit, and whether the model agrees.

    `rank` is that of the concept by the size of its contribution now, from 0; edits have rank 0.
    """

    model: str
    text: str
    agrees: bool
    rank: int
    is_clear: bool


@app.command()
def main() -> None:
    """Print the agreement of the readers with the shipped models, with 95 % intervals over texts."""
    settings = common.load_settings().model_copy(update={"dtype": "float32"})
    with common.exit_on_error(), common.show_progress() as progress:
        engine = loading.load_engine(settings, progress)
        contrasts, edits = judge_contrasts(engine), judge_edits(engine)
    table = Table("test", "group", "answers", "agree")
    for name, judgements in (("contrasts", contrasts), ("edits", edits)):
        for group, members in _group(judgements).items():
            table.add_row(name, group, str(len(members)), summarise(members))
    Console().print(table)


def judge_contrasts(engine: Engine) -> list[Judgement]:
    """Compare the readers' answers about contrasts with the contributions of the concepts."""
    judgements = []
    for row in _read("contrasts.jsonl"):
        a, b = _score(engine, row, (row["a"], row["b"]))
        concepts = [concept for concept in subtract_concepts(a, b) if concept.name is not None]
        for name, favours in zip(row["concepts"], row["favours"], strict=True):
            rank, concept = next((i, c) for i, c in enumerate(concepts) if c.name == name)
            agrees = favours == ("A" if concept.contribution > 0 else "B")
            judgements.append(Judgement(row["model"], row["prompt"], agrees, rank, _is_clear(a, b)))
    return judgements


def judge_edits(engine: Engine) -> list[Judgement]:
    """Compare the readers' answers about edits with the change of the reward."""
    judgements = []
    for row in _read("edits.jsonl"):
        after, before = _score(engine, row, (row["after"], row["before"]))
        agrees = row["rises"] == (after.reward > before.reward)
        judgements.append(Judgement(row["model"], row["prompt"], agrees, 0, _is_clear(after, before)))
    return judgements


def summarise(judgements: Sequence[Judgement]) -> str:
    """Return the share of answers that agree, with its interval over texts."""
    share = bootstrap_mean(np.array([float(j.agrees) for j in judgements]), [j.text for j in judgements])
    return f"{share.accuracy:.3f} [{share.ci_low:.3f}, {share.ci_high:.3f}]"


def _group(judgements: list[Judgement]) -> dict[str, list[Judgement]]:
    groups = {"all": judgements, "not too close to call": [j for j in judgements if j.is_clear]}
    for model in dict.fromkeys(judgement.model for judgement in judgements):
        groups[model] = [j for j in judgements if j.model == model]
    for rank in (
        sorted({judgement.rank for judgement in judgements})
        if any(judgement.rank for judgement in judgements)
        else ()
    ):
        groups[f"concept number {rank + 1} by size"] = [j for j in judgements if j.rank == rank]
    return groups


def _read(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def _score(engine: Engine, row: Row, responses: tuple[str, str]) -> list[Score]:
    items = [Item((Message("user", row["prompt"]),), response) for response in responses]
    options = ScoreOptions((row["model"],), top_k=0)
    results = engine.score([ScoreJob(encoded, options) for encoded in engine.encode(items)])
    return [result.scores[0] for result in results if isinstance(result, ScoredItem)]


def _is_clear(a: Score, b: Score) -> bool:
    uncertainty = (a.uncertainty**2 + b.uncertainty**2) ** 0.5
    return bool(abs(a.reward - b.reward) >= CLEAR_LEAD * uncertainty)


if __name__ == "__main__":
    app()
