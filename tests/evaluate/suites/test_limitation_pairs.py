"""Limitation pairs: read by file, measured beside the length of responses."""

import json
from pathlib import Path

import pytest
import torch

from app.errors import DataError
from app.evaluate.accuracy import ScoredPairs
from app.evaluate.report_limitations import DESCRIPTIONS
from app.evaluate.suites import limitation_pairs
from app.evaluate.suites.questions import ItemScores


def write_limitations(folder: Path) -> Path:
    """Write two files: in one the chosen response is longer, in the other shorter. Return the folder."""
    folder.mkdir(exist_ok=True)
    for name, chosen, rejected in (("long", "amber stone maple", "glass"), ("short", "amber", "glass paper")):
        rows = [
            {"prompt": f"river {name} {i}?", "chosen": chosen, "rejected": rejected, "kind": "k"}
            for i in range(4)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_each_file_is_measured_on_its_own() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [2.0, 2.0]]).double()
    pairs = ScoredPairs(rewards, torch.tensor([[5, 3], [5, 3], [2, 9], [9, 9]]), list("abcd"))
    other = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    results = limitation_pairs.measure_files(["one", "one", "two", "two"], pairs, {"TF-IDF": other})
    one, two = results["one"], results["two"]
    assert (one["accuracy"], one["n"], two["accuracy"]) == (0.5, 2, 0.75)
    assert one["chosen_longer"]["n"] == 2
    assert one["chosen_shorter"] is None
    assert (two["chosen_longer"], two["chosen_shorter"]["n"]) == (None, 1)
    assert one["baselines"]["longer response wins"]["accuracy"] == 1
    assert two["baselines"]["longer response wins"]["accuracy"] == 0.25
    assert [row["baselines"]["TF-IDF"]["accuracy"] for row in (one, two)] == [0, 1]


def test_the_files_of_a_folder_are_subsets(tmp_path: Path) -> None:
    questions = limitation_pairs.read(str(write_limitations(tmp_path)))
    assert [question.subset for question in questions] == ["long"] * 4 + ["short"] * 4
    rewards = {item: float("amber" in item.response) for question in questions for item in question.items}
    counts = {item: len(item.response.split()) for item in rewards}
    results = limitation_pairs.measure(questions, ItemScores(rewards, counts))
    assert {name: row["accuracy"] for name, row in results["files"].items()} == {"long": 1, "short": 1}
    lengths = [row["baselines"]["longer response wins"]["accuracy"] for row in results["files"].values()]
    assert lengths == [1, 0]
    (table,) = limitation_pairs.render(results)
    assert len(table.rows) == 2


def test_the_packaged_files_are_read_and_described() -> None:
    files = limitation_pairs.read_limitations(limitation_pairs.FOLDER)
    assert files.keys() == DESCRIPTIONS.keys()
    for pairs in files.values():
        assert len({pair.group for pair in pairs}) == len(pairs) >= 100
        assert all(dict(pair.attributes).keys() & {"field", "kind"} for pair in pairs)


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .jsonl files"):
        limitation_pairs.read(str(tmp_path))
