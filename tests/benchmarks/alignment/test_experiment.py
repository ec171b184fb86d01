"""The alignment experiment at a tiny size: arms, best-of-n curve, page, and continuing an interrupted run."""

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
from benchmarks.alignment.__main__ import run
from benchmarks.alignment.best_of_n import best_of_n_curve
from benchmarks.alignment.experiment import ARMS, RANDOM, SPARSE, AlignmentTask
from benchmarks.alignment.presets import PRESETS, Preset, override_preset
from benchmarks.alignment.tables import write_section
from tests.support.training_setup import Killed, ignore_progress, kill_in_stage

ROW = re.compile(rf"^\| ({'|'.join(ARMS)}) \|", re.MULTILINE)
TINY = Preset(
    seeds=2, per_round=8, new_tokens=6, epochs=2, lr=5e-3, batch=4, step=2, answered=4, compared=20,
    learnt=60, standard=16, pool_prompts=4, pool=8, k=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def task(training_settings: Settings) -> AlignmentTask:
    """Training pairs of the fixture; every other test pair says it is a reference answer."""
    root = training_settings.models_dir.parent
    test = [
        replace(pair, group=f"t{pair.group}", attributes=(("kind", "reference"), ("best", "True")))
        for pair in read_pairs(root / "test.jsonl")
    ]
    return AlignmentTask("toy", read_pairs(root / "pairs.jsonl"), test, ("a", "b"), "better")


def run_experiment(
    task: AlignmentTask, preset: Preset, training_settings: Settings, sae: Path, folder: Path, progress: Any
) -> Any:
    policy = str(training_settings.models_dir.parent / "backbone")
    settings = training_settings.model_copy(update={"cache_dir": folder / "cache"})
    return run(task, preset, sae, policy, folder, settings, progress)


@pytest.mark.heavy
def test_report_and_page_contain_every_arm(
    task: AlignmentTask, training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    small = replace(TINY, seeds=1, per_round=4, epochs=1, answered=2, compared=8, pool_prompts=2)
    report = run_experiment(task, small, training_settings, trained_sae, tmp_path, ignore_progress)
    arms = report["study"]["arms"]
    assert tuple(arms) == ARMS
    assert arms[SPARSE]["pairs"] == arms[RANDOM]["pairs"]
    assert arms["no filter"]["implicit accuracy"]["lead"]["ci_high"] == 0
    assert report["study"]["reward models"][SPARSE]["mean"] > 0.9
    folders = (tmp_path / "seed-0" / arm.replace(" ", "-").lower() for arm in ARMS)
    assert len({(folder / "round-1" / "pairs.jsonl").read_text() for folder in folders}) == 1
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- toy -->\nold text\n<!-- /toy -->\nafter\n")
    write_section(page, json.loads(json.dumps(report)))
    text = page.read_text()
    assert ROW.findall(text) == list(ARMS)
    assert ("old text" in text, text.startswith("before"), text.endswith("after\n")) == (False, True, True)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_interrupted_experiment_gives_the_same_report(
    task: AlignmentTask, training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    progress = kill_in_stage("random filter, seed 1: round 1: DPO", 0)
    with pytest.raises(Killed):
        run_experiment(task, TINY, training_settings, trained_sae, tmp_path / "interrupted", progress)
    interrupted, uninterrupted = (
        run_experiment(task, TINY, training_settings, trained_sae, tmp_path / name, ignore_progress)
        for name in ("interrupted", "uninterrupted")
    )
    assert {**interrupted, "seconds": 0} == {**uninterrupted, "seconds": 0}


def test_best_of_n_is_an_exact_expectation() -> None:
    rng = np.random.default_rng(3)
    proxy, gold = rng.normal(size=(2, 1, 8))
    curve = best_of_n_curve(proxy, gold)
    standardised = (gold[0] - gold[0].mean()) / gold[0].std()
    for n, point in zip(curve["n"], curve["gold"], strict=True):
        subsets = list(itertools.combinations(range(8), n))
        expected = np.mean([standardised[max(subset, key=lambda i: proxy[0][i])] for subset in subsets])
        assert point["mean"] == pytest.approx(expected)
    assert curve["n"] == [1, 2, 4, 8]
    assert curve["kl"][0] == 0


def test_hacked_gold_reward_peaks_early() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(40, 64))
    honest, hacked = best_of_n_curve(proxy, proxy), best_of_n_curve(proxy, -np.abs(proxy - 1))
    assert (honest["peak"], honest["peak_interval"]) == (64, [64, 64])
    assert 1 < hacked["peak"] < 32


def test_preset_fields_can_be_overridden() -> None:
    preset = override_preset(PRESETS["small"], ["seeds=5", "lr=0.01"])
    assert (preset.seeds, preset.lr, preset.pool) == (5, 0.01, PRESETS["small"].pool)
    with pytest.raises(DataError, match="no size 'seed'"):
        override_preset(PRESETS["small"], ["seed=1"])


def test_rejects_a_page_without_markers(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(DataError, match="no marks <!-- toy -->"):
        write_section(tmp_path / "page.md", {"task": "toy"})
