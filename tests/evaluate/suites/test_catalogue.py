"""Suites as `sparserm evaluate --suite` runs them, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.data.pairs import read_pairs
from app.data.public_datasets import write_public_dataset
from app.errors import DataError
from app.evaluate import accuracy_run
from app.evaluate.suites import catalogue
from app.settings import Settings
from tests.cli.test_commands import joined_output, sparserm
from tests.evaluate.suites.test_limitation_pairs import write_limitations
from tests.support.suite_rows import rewardbench2_rows, rm_bench_rows, write_rows
from tests.support.training_setup import ignore_progress

MODEL = "alpha"


def run_suite(settings: Settings, name: str, source: Path | None, **choices: Any) -> dict[str, Any]:
    """Evaluate a tiny model on a suite."""
    folder = settings.models_dir / MODEL
    return catalogue.evaluate_suite(
        folder, name, str(source) if source else None, settings, ignore_progress, **choices
    )


@pytest.mark.parametrize(
    ("name", "rows"), [("rewardbench2", rewardbench2_rows(5)), ("rm-bench", rm_bench_rows(5))]
)
def test_released_rows_and_their_pairs_give_the_same_results(
    settings: Settings, tmp_path: Path, name: str, rows: list[dict[str, Any]]
) -> None:
    released = write_rows(tmp_path / "released.jsonl", rows)
    write_public_dataset(name, tmp_path, source=str(released))
    pairs = tmp_path / f"{name}_test.jsonl"
    results = run_suite(settings, name, released)
    assert run_suite(settings, name, pairs) == results
    assert json.loads(json.dumps(results)) == results
    assert (results["model"], results["suite"], results["questions"]) == (MODEL, name, len(rows))
    assert results["missing"] == []
    ordinary = accuracy_run.evaluate_bundle(
        settings.models_dir / MODEL, read_pairs(pairs), (), settings, ignore_progress
    )
    assert 0 <= ordinary["accuracy"] <= 1


def test_the_best_of_four_is_that_of_the_engine(settings: Settings, tmp_path: Path) -> None:
    rows = [row for row in rewardbench2_rows(12) if row["subset"] == "Math"]
    for row in rows[::3]:  # otherwise the random model prefers the same response everywhere
        row["chosen"], row["rejected"] = row["rejected"][:1], [*row["chosen"], *row["rejected"][1:]]
    results = run_suite(settings, "rewardbench2", write_rows(tmp_path / "rows.jsonl", rows))
    engine, name = accuracy_run.load_engine(settings.models_dir / MODEL, settings, ignore_progress)
    questions = catalogue.SUITES["rewardbench2"].read(str(tmp_path / "rows.jsonl"), None)
    wins = []
    for question in questions:
        scores = accuracy_run.score_items(engine, name, list(question.items), ignore_progress)
        correct, *incorrect = (score.reward for score in scores.values())
        wins.append(correct > max(incorrect))
    assert results["subsets"]["Math"]["accuracy"] == pytest.approx(sum(wins) / len(wins))
    assert 0 < sum(wins) < len(wins)


def test_a_limit_scores_the_first_prompts_of_each_subset(settings: Settings, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", rewardbench2_rows(5))
    results = run_suite(settings, "rewardbench2", source, limit=2)
    assert {name: row["n"] for name, row in results["subsets"].items()} == dict.fromkeys(
        results["subsets"], 2
    )
    assert results["questions"] == 2 * 7
    (table,) = catalogue.render_tables(results)
    assert "first 2 prompts of each subset" in str(table.title)


def test_cut_responses_are_counted(settings: Settings, tmp_path: Path) -> None:
    rows = rm_bench_rows(1)
    rows[0]["chosen"][2] = "amber " * 300
    results = run_suite(settings, "rm-bench", write_rows(tmp_path / "rows.jsonl", rows))
    assert results["truncated"] == 1
    assert "1 of 30 responses" in str(catalogue.render_tables(results)[0].caption)


def test_limitations_are_read_from_a_folder(settings: Settings, tmp_path: Path) -> None:
    results = run_suite(settings, "limitations", write_limitations(tmp_path))
    assert {name: row["n"] for name, row in results["files"].items()} == {"long": 4, "short": 4}


def test_errors_say_how_to_get_the_file(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are: rewardbench2, rm-bench, limitations"):
        run_suite(settings, "nonsense", None)
    with pytest.raises(DataError, match=r"from the hub: .*`sparserm data rm-bench DATA`.*rm-bench_test"):
        run_suite(settings, "rm-bench", None)
    with pytest.raises(DataError, match=r"no file .*`sparserm data rewardbench2 DATA`"):
        run_suite(settings, "rewardbench2", tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no questions of the suite 'rm-bench'"):
        run_suite(settings, "rm-bench", tmp_path / "empty.jsonl")


def test_the_command_prints_tables_or_json(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models_dir", "cache_dir", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("COLUMNS", "120")
    source = write_rows(tmp_path / "rows.jsonl", rm_bench_rows())
    words = ("evaluate", settings.models_dir / MODEL, source, "--suite", "rm-bench")
    printed = sparserm(*words)
    assert printed.exit_code == 0, printed.output
    assert "safety-refuse" in printed.stdout
    assert "chosen \\ rejected" in printed.stdout
    results = json.loads(sparserm(*words, "--json", "--limit", "1").stdout)
    assert results["total"]["average"]["n"] == 5
    assert results["limit"] == 1


def test_options_of_the_other_kind_of_evaluation_are_refused(tmp_path: Path) -> None:
    for words, message in (
        ((), "give PAIRS or --suite"),
        (("pairs.jsonl", "--limit", "3"), "--limit needs --suite"),
        (("--suite", "rm-bench", "--slice", "a=b"), "a suite has its own subsets"),
    ):
        result = sparserm("evaluate", tmp_path, *words)
        assert result.exit_code == 2
        assert message in joined_output(result)
