"""The alignment experiment in miniature: every arm, the curve, the page, and what a cut run repeats."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.pairs import read_pairs
from app.errors import DataError
from app.settings import Settings
from benchmarks.alignment import best_of_n, tables
from benchmarks.alignment.__main__ import run
from benchmarks.alignment.experiment import ARMS, CHANCE, OURS, Task
from benchmarks.alignment.presets import PRESETS, Preset, changed
from tests.support.training_setup import Killed, killing_at, quiet

ROW = re.compile(rf"^\| ({'|'.join(ARMS)}) \|", re.MULTILINE)
TINY = Preset(
    seeds=2, per_round=8, new_tokens=6, epochs=2, lr=5e-3, batch=4, step=2, answered=4, compared=20,
    learnt=60, standard=16, pool_prompts=4, pool=8, k=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def task(training_settings: Settings) -> Task:
    """Training pairs of the fixture; every other test pair says it is a reference answer."""
    root = training_settings.models_dir.parent
    test = [
        replace(pair, group=f"t{pair.group}", attributes=(("kind", "reference"), ("best", "True")))
        for pair in read_pairs(root / "test.jsonl")
    ]
    return Task("toy", read_pairs(root / "pairs.jsonl"), test, ("a", "b"), "better")


def study(
    task: Task, preset: Preset, training_settings: Settings, sae: Path, folder: Path, report: Any
) -> Any:
    start = str(training_settings.models_dir.parent / "backbone")
    own = training_settings.model_copy(update={"cache_dir": folder / "cache"})
    return run(task, preset, sae, start, folder, own, report)


@pytest.mark.heavy
def test_every_arm_is_measured_and_told(
    task: Task, training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    small = replace(TINY, seeds=1, per_round=4, epochs=1, answered=2, compared=8, pool_prompts=2)
    found = study(task, small, training_settings, trained_sae, tmp_path, quiet)
    arms = found["study"]["arms"]
    assert tuple(arms) == ARMS
    assert arms[OURS]["pairs"] == arms[CHANCE]["pairs"]
    assert arms["no filter"]["implicit accuracy"]["lead"]["ci_high"] == 0
    assert found["study"]["reward models"][OURS]["mean"] > 0.9
    homes = (tmp_path / "seed-0" / arm.replace(" ", "-").lower() for arm in ARMS)
    assert len({(home / "round-1" / "pairs.jsonl").read_text() for home in homes}) == 1
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- toy -->\nformer figures\n<!-- /toy -->\nafter\n")
    tables.write(page, json.loads(json.dumps(found)))
    text = page.read_text()
    assert ROW.findall(text) == list(ARMS)
    assert ("former" in text, text.startswith("before"), text.endswith("after\n")) == (False, True, True)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_a_cut_experiment_ends_as_an_unbroken_one(
    task: Task, training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    cut = killing_at("random filter, seed 1: round 1: DPO", 0)
    with pytest.raises(Killed):
        study(task, TINY, training_settings, trained_sae, tmp_path / "cut", cut)
    found, straight = (
        study(task, TINY, training_settings, trained_sae, tmp_path / name, quiet)
        for name in ("cut", "straight")
    )
    assert {**found, "seconds": 0} == {**straight, "seconds": 0}


def test_the_best_of_n_is_an_exact_expectation() -> None:
    rng = np.random.default_rng(3)
    proxy, gold = rng.normal(size=(2, 1, 8))
    found = best_of_n.curve(proxy, gold)
    even = (gold[0] - gold[0].mean()) / gold[0].std()
    for n, point in zip(found["n"], found["gold"], strict=True):
        subsets = list(itertools.combinations(range(8), n))
        wanted = np.mean([even[max(some, key=lambda i: proxy[0][i])] for some in subsets])
        assert point["mean"] == pytest.approx(wanted)
    assert found["n"] == [1, 2, 4, 8]
    assert found["kl"][0] == 0


def test_a_gold_reward_that_is_hacked_peaks_early() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(40, 64))
    honest, hacked = best_of_n.curve(proxy, proxy), best_of_n.curve(proxy, -np.abs(proxy - 1))
    assert (honest["peak"], honest["peak_interval"]) == (64, [64, 64])
    assert 1 < hacked["peak"] < 32


def test_sizes_can_be_set_one_by_one() -> None:
    found = changed(PRESETS["small"], ["seeds=5", "lr=0.01"])
    assert (found.seeds, found.lr, found.pool) == (5, 0.01, PRESETS["small"].pool)
    with pytest.raises(DataError, match="no size 'seed'"):
        changed(PRESETS["small"], ["seed=1"])


def test_a_page_without_room_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(DataError, match="no marks <!-- toy -->"):
        tables.write(tmp_path / "page.md", {"task": "toy"})
