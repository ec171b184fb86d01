"""Limitations are measured at the end of training, with the model's own rewards."""

import json
from pathlib import Path

import pytest

from app.evaluate.audit.attacks import ATTACKS
from app.evaluate.suites import catalogue
from app.evaluate.suites.limitation_pairs import LONGER_WINS, TFIDF, read_limitations
from app.settings import Settings
from app.train import jobs, limitations, pipeline
from tests.support.training_setup import ignore_progress, training_config


def write_files(training_settings: Settings, folder: Path) -> None:
    """Write test pairs to one file and, with chosen and rejected swapped, to another."""
    lines = (training_settings.models_dir.parent / "test.jsonl").read_text().splitlines()[:30]
    swapped = [
        json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
        for row in map(json.loads, lines)
    ]
    for name, rows in (("straight", lines), ("swapped", swapped)):
        (folder / f"{name}.jsonl").write_text("\n".join(rows))


def test_training_adds_limitations_to_report_and_card(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    write_files(training_settings, tmp_path)
    config = training_config(
        training_settings, trained_sae, "limited", limitations=read_limitations(tmp_path)
    )
    settings = training_settings.model_copy(update={"models_dir": tmp_path / "models"})
    model = jobs.train_and_save(config, trained_sae, settings, ignore_progress)
    bundle = settings.models_dir / "limited"
    section = json.loads((bundle / "report.json").read_text())["limitations"]
    straight, swapped = section["straight"], section["swapped"]
    assert straight["accuracy"] == 1 - swapped["accuracy"] > 0.9
    assert {name: row["accuracy"] for name, row in straight["baselines"].items()} == {
        LONGER_WINS: pytest.approx(1 - swapped["baselines"][LONGER_WINS]["accuracy"]), TFIDF: 1,
    }  # fmt: skip
    assert model.card.metrics == {f"limitations_{name}": row["accuracy"] for name, row in section.items()}
    assert "## Limitations" in (bundle / "report.md").read_text()
    served = catalogue.evaluate_suite(bundle, "limitations", str(tmp_path), settings, ignore_progress)
    for name, row in served["files"].items():
        assert row["accuracy"] == pytest.approx(section[name]["accuracy"], abs=0.04)
        assert row["baselines"][LONGER_WINS] == section[name]["baselines"][LONGER_WINS]


def test_attacks_are_tried_on_a_sample_of_the_test_pairs(
    training_settings: Settings, trained_sae: Path
) -> None:
    config = training_config(training_settings, trained_sae, "attacked", with_test=True)
    extractor = jobs.load_feature_extractor(trained_sae, training_settings, ignore_progress)
    results = pipeline.train(config, extractor, training_settings.cache, ignore_progress)
    section = results.results["attack_sample"]
    assert set(section["attacks"]) == set(ATTACKS)
    assert 0 < section["n"] <= limitations.ATTACKED_PAIRS
    assert all(0 <= share <= 1 for share in section["attacks"].values())
    # the preferred word of these pairs is an effective keyword
    assert section["attacks"]["keyword stuffing"] > section["attacks"]["empty"]
