"""The ablation: every variant is measured, an interrupted run resumes, and the report shows the results."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.train import jobs
from benchmarks.research.ablate import ablate_and_report
from tests.support.training_setup import Killed, ignore_progress, kill_in_stage, training_config


@pytest.mark.heavy
def test_every_variant_is_evaluated_and_added_to_the_report(
    training_settings: Settings, trained_sae: Path
) -> None:
    root = training_settings.models_dir.parent
    pairs, test = str(root / "pairs.jsonl"), str(root / "test.jsonl")
    jobs.train_and_save(
        training_config(training_settings, trained_sae, "studied", with_test=True),
        trained_sae,
        training_settings,
        ignore_progress,
    )
    choices: dict[str, Any] = {"layers": (2, 3, 4), "seeds": 2, "limit": 150, "on_bad_row": None}
    choices["elsewhere"] = [pairs]
    cache = training_settings.cache / "ablations" / "studied.sqlite"
    with pytest.raises(Killed):
        ablate_and_report(
            "studied", pairs, test, trained_sae, training_settings, kill_in_stage("data", 1), **choices
        )
    assert cache.exists()
    ablate_and_report("studied", pairs, test, trained_sae, training_settings, ignore_progress, **choices)
    assert not cache.exists()
    folder = training_settings.models_dir / "studied"
    results = json.loads((folder / "report.json").read_text())
    ablate_and_report("studied", pairs, test, trained_sae, training_settings, ignore_progress, **choices)
    assert json.loads((folder / "report.json").read_text()) == results
    assert results["ablation"]["pairs"] == 150
    variants = results["ablation"]["variants"]
    first, *others = variants
    assert first.startswith("SparseRM: K = 16, layer 3")
    assert {"random directions", "dense at layer 2", "read-out: end", "TF-IDF of the response"} <= set(others)
    assert variants[first]["accuracy"] > 0.9 > variants["longer response wins"]["accuracy"] - 0.5
    assert all(row["lead"]["n"] == row["n"] == 100 for row in map(variants.get, others) if row)
    assert list(results["ablation"]["data"]["SparseRM"]) == ["100", "300"]
    assert list(results["ablation"]["directions"]["selected"]) == ["16", "32", "64"]
    ours, chance = (
        results["ablation"]["directions"][name]["16"] for name in ("selected", "random directions")
    )
    assert chance["lead"]["accuracy"] == pytest.approx(ours["accuracy"] - chance["accuracy"])
    assert results["test"]["n"] == 100
    beyond = results["beyond"]
    assert {test_name: row["selected directions"]["n"] for test_name, row in beyond["accuracy"].items()} == {
        "this test": 100, "pairs": 400,
    }  # fmt: skip
    assert beyond["accuracy"]["this test"]["selected directions"]["accuracy"] == variants[first]["accuracy"]
    assert 0 <= beyond["flips"]["random directions"]["accuracy"] < 0.5
    page = (folder / "report.md").read_text()
    assert "## Variants of the method" in page
    assert f"Their lead by the number of directions of each sign: {chance['lead']['accuracy']:+.3f}" in page
    assert {"variants.png", "data.png", "directions.png"} <= {file.name for file in folder.iterdir()}
