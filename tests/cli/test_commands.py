"""Commands as a user types them, on the tiny backbone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from app.settings import Settings
from tests.data.test_public_datasets import RAW_ROWS, write_raw


@pytest.fixture
def shop(workshop: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The workshop's folder; models made here go elsewhere."""
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(workshop.cache_dir))
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(tmp_path / "models"))
    return workshop.models_dir.parent


def sparserm(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result: Result) -> str:
    """The output without the line breaks of a narrow terminal."""
    return " ".join(result.output.split())


def test_a_bad_row_stops_training_unless_it_may_be_skipped(
    shop: Path, made_sae: Path, tmp_path: Path
) -> None:
    lines = (shop / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:60], '{"prompt": "x"', *lines[60:]]))
    words = (
        "train",
        tmp_path / "bad.jsonl",
        "--task",
        "kept",
        "--sae",
        made_sae,
        "--k",
        "8",
        "--limit",
        "100",
    )
    stopped = sparserm(*words)
    assert stopped.exit_code == 1
    assert "bad.jsonl:61: not JSON" in said(stopped)
    assert not (tmp_path / "models" / "kept").exists()
    skipped = sparserm(*words, "--bad", "skip")
    assert skipped.exit_code == 0
    assert "skipped: bad.jsonl:61" in said(skipped)
    assert (tmp_path / "models" / "kept" / "SHA256SUMS").exists()
    told = sparserm("evaluate", tmp_path / "models" / "kept", shop / "test.jsonl", "--json")
    found = json.loads(told.stdout)
    assert found["n"] == 100
    assert 0 <= found["ci_low"] <= found["accuracy"] <= found["ci_high"] <= 1
    shown = sparserm("evaluate", tmp_path / "models" / "kept", shop / "test.jsonl")
    assert "chosen is longer" in shown.stdout
    card = json.loads(sparserm("models", "show", "kept").stdout)
    assert card["data"][0]["license"] == "not stated"
    assert "kept" in sparserm("models", "list").stdout


def test_what_is_missing_is_said_in_a_sentence(shop: Path, tmp_path: Path) -> None:
    nothing = sparserm("evaluate", tmp_path / "nothing", shop / "test.jsonl")
    assert (nothing.exit_code, "no bundle here" in said(nothing)) == (1, True)
    no_sae = sparserm("train", shop / "pairs.jsonl", "--task", "x", "--sae", tmp_path)
    assert (no_sae.exit_code, "holds no SAE" in said(no_sae)) == (1, True)
    no_pairs = sparserm("train", tmp_path / "none.jsonl", "--task", "x")
    assert (no_pairs.exit_code, "no file" in said(no_pairs)) == (1, True)


def test_public_sets_are_written_as_pairs(tmp_path: Path) -> None:
    done = sparserm(
        "data", "rm-bench", tmp_path / "out", "--source", write_raw(tmp_path, RAW_ROWS["rm-bench"][0])
    )
    assert done.exit_code == 0
    assert "0 train, 9 test pairs" in said(done)
