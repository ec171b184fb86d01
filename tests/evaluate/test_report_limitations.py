"""The section of a report about limitations."""

import json
from pathlib import Path

import torch

from app.evaluate import report
from app.evaluate.accuracy import ScoredPairs
from app.evaluate.suites.limitation_pairs import measure_files
from app.reward.bundle import load_bundle
from app.settings import Settings


def test_the_section_shows_the_model_beside_the_baselines(settings: Settings, tmp_path: Path) -> None:
    card = load_bundle(settings.models_dir / "alpha").card
    rewards = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    pairs = ScoredPairs(rewards, torch.tensor([[3, 9], [3, 9], [9, 3]]), list("abc"))
    files = measure_files(["facts", "facts", "other_file"], pairs, {"TF-IDF": torch.zeros(3)})
    report.create(tmp_path, card, {})
    assert "Limitations" not in (tmp_path / "report.md").read_text()
    report.update(tmp_path, card, {"limitations": files})
    text = (tmp_path / "report.md").read_text()
    assert "## Limitations" in text
    assert "| pairs | SparseRM | longer response wins | TF-IDF | chosen is longer |" in text
    row = next(line for line in text.splitlines() if line.startswith("| facts: a true"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("**1.000")
    assert (cells[2][:5], cells[3][:5], cells[4], cells[5][:5], cells[6]) == (
        "0.000", "0.500", "", "1.000", "2",
    )  # fmt: skip
    assert "| other file |" in text
    assert json.loads((tmp_path / "report.json").read_text())["limitations"] == files
