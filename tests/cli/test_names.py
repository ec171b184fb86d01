"""`sparserm features` and `sparserm names`, from evidence to a named bundle."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.settings import Settings
from app.train.names.evidence import evidence_folder
from tests.support import named_models

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def named_settings(training_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return named_models.make_model_with_evidence(training_settings, tmp_path_factory.mktemp("named"))


@pytest.fixture(autouse=True)
def environment(named_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models_dir", "cache_dir", "device", "max_tokens"):
        monkeypatch.setenv(f"SPARSERM_{name.upper()}", str(getattr(named_settings, name)))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object, code: int = 0) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_model_is_named_from_the_command_line(
    named_settings: Settings, training_settings: Settings, tmp_path: Path
) -> None:
    name, root = named_models.NAME, training_settings.models_dir.parent
    output = run("features", "evidence", name, root / "pairs.jsonl", "--test", root / "test.jsonl")
    assert "holds texts of the pairs" in re.sub(r"\s+", " ", output)
    run("names", "sheet", name, tmp_path / "sheet")
    rows = [json.loads(line) for line in (tmp_path / "sheet.jsonl").read_text().splitlines()]
    filled = [{**row, "name": "says amber", "concept": row["effect"]} for row in rows]
    (tmp_path / "sheet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filled))
    quiz = tmp_path / "quiz.jsonl"
    run("names", "test", name, tmp_path / "sheet.jsonl", quiz)
    questions = [json.loads(line) for line in quiz.read_text().splitlines()]
    tested = json.loads(
        (evidence_folder(named_settings.cache, name) / f"answers-{questions[0]['test']}.json").read_text()
    )
    answered = [{**row, "fits": tested["answers"][row["key"]]} for row in questions]
    quiz.write_text("".join(json.dumps(row) + "\n" for row in answered))
    assert "names passed" in run("names", "score", name, quiz)
    listed = run("features", "list", name)
    assert "says amber" in listed
    assert "raises rewards" in listed


def test_missing_evidence_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(tmp_path))
    output = re.sub(r"\s+", " ", run("names", "sheet", named_models.NAME, tmp_path / "sheet", code=1))
    assert f"run `sparserm features evidence {named_models.NAME} PAIRS` first" in output


def test_an_endpoint_is_asked_only_after_a_confirmation() -> None:
    result = RUNNER.invoke(
        app,
        ["names", "auto", named_models.NAME, "--endpoint", "http://127.0.0.1:9/v1", "--name-with", "m"],
        input="n\n",
    )
    assert result.exit_code == 1
    assert "input tokens to http://127.0.0.1:9/v1" in re.sub(r"\s+", " ", result.output)


def test_models_without_a_public_sae_have_no_names_on_neuronpedia(tmp_path: Path) -> None:
    output = run("names", "neuronpedia", named_models.NAME, tmp_path / "sheet.jsonl", code=1)
    assert "Neuronpedia" in output
