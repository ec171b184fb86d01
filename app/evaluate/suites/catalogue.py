"""The suites of `sparserm evaluate --suite`, and the scoring of one with a bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from app.data.pairs import BadRowHandler
from app.data.public_datasets import PUBLIC_DATASETS
from app.errors import DataError
from app.evaluate.accuracy_run import load_engine, score_items
from app.evaluate.suites import limitation_pairs, rewardbench2, rm_bench
from app.evaluate.suites.questions import ItemScores, Question, take_first
from app.settings import Settings
from app.types import Progress


@dataclass(frozen=True, slots=True)
class Suite:
    """Where a suite is read from by default, how it is read, measured, and rendered for a terminal."""

    source: str
    read: Callable[[str, BadRowHandler | None], list[Question]]
    measure: Callable[[Sequence[Question], ItemScores], dict[str, Any]]
    render: Callable[[dict[str, Any]], list[Table]]


SUITES = {
    "rewardbench2": Suite(
        PUBLIC_DATASETS["rewardbench2"].source, rewardbench2.read, rewardbench2.measure, rewardbench2.render
    ),
    "rm-bench": Suite(PUBLIC_DATASETS["rm-bench"].source, rm_bench.read, rm_bench.measure, rm_bench.render),
    "limitations": Suite(
        str(limitation_pairs.FOLDER), limitation_pairs.read, limitation_pairs.measure, limitation_pairs.render
    ),
}


def evaluate_suite(
    folder: Path,
    name: str,
    source: str | None,
    settings: Settings,
    progress: Progress,
    *,
    limit: int = 0,
    on_bad_row: BadRowHandler | None = None,
) -> dict[str, Any]:
    """Return a bundle's metrics on a suite, read from `source` or from where it is published.

    `limit` scores only the first prompts of each subset; 0 scores all.
    """
    suite = find_suite(name)
    questions = take_first(_read_questions(name, source, on_bad_row), limit)
    engine, model = load_engine(folder, settings, progress)
    items = list(dict.fromkeys(item for question in questions for item in question.items))
    scored = score_items(engine, model, items, progress)
    encoded = engine.encode(items)
    counts = {item: e.response_end - e.response_start for item, e in zip(items, encoded, strict=True)}
    scores = ItemScores({item: score.reward for item, score in scored.items()}, counts)
    return {
        "model": model,
        "suite": name,
        "limit": limit,
        "questions": len(questions),
        "responses": len(items),
        "truncated": sum(e.truncated for e in encoded),
        **suite.measure(questions, scores),
    }


def find_suite(name: str) -> Suite:
    """Return a suite by name; raise DataError if there is none."""
    if name not in SUITES:
        raise DataError(f"unknown suite {name!r}; there are: {', '.join(SUITES)}")
    return SUITES[name]


def render_tables(results: dict[str, Any]) -> list[Table]:
    """Render the results of `evaluate_suite` for a terminal."""
    tables = find_suite(results["suite"]).render(results)
    tables[0].title = f"{results['model']} on {results['suite']}"
    if results["limit"]:
        tables[0].title += f", first {results['limit']} prompts of each subset"
    notes = [str(tables[0].caption)] if tables[0].caption else []
    if results["truncated"]:
        notes.append(
            f"{results['truncated']} of {results['responses']} responses with their prompts were "
            "cut to the maximum number of tokens (SPARSERM_MAX_TOKENS)"
        )
    tables[0].caption = "\n".join(notes)
    return tables


def _read_questions(name: str, source: str | None, on_bad_row: BadRowHandler | None) -> list[Question]:
    """Return the questions of a suite; an error says how to get the suite's file."""
    suite = find_suite(name)
    try:
        questions = suite.read(source or suite.source, on_bad_row)
    except DataError as error:
        if name in PUBLIC_DATASETS:
            error.message += (
                f". To get the file of this suite where the hub can be reached: `sparserm data {name} DATA`; "
                f"then add DATA/{name}_test.jsonl to this command"
            )
        raise
    if not questions:
        raise DataError(f"{source or suite.source}: no questions of the suite {name!r}")
    return questions
