"""The loop: what a round does to a policy, what is kept, cut runs, alarms, and the command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.align import config as plans
from app.align import report, reward_hacking, run
from app.align.artifacts import RunArtifacts
from app.errors import DataError
from app.reward import loading
from app.settings import Settings
from app.types import Item
from tests.cli.test_commands import said, sparserm
from tests.support import alignment_runs, offline_runs, tiny
from tests.support.servers import listening
from tests.support.training_setup import Killed, killing_at, quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny.build_models(tmp_path_factory.mktemp("aligning"))


@pytest.fixture(scope="module")
def root(world: Settings) -> Path:
    return world.models_dir.parent


@pytest.fixture(scope="module")
def straight(root: Path, world: Settings) -> Path:
    """A run of two rounds that nobody cut."""
    folder = root / "straight"
    alignment_runs.run(alignment_runs.plan(root, rounds=2), folder, world)
    return folder


def test_every_round_is_kept_and_told(straight: Path) -> None:
    found = json.loads((straight / "report.json").read_text())
    assert [row["round"] for row in found["rounds"]] == [0, 1, 2]
    first, second, _ = found["rounds"]
    assert first["summary"]["kl"] == 0
    assert second["summary"]["kl"] != 0
    assert {"implicit accuracy", "mc1", "mc2", "reward", "held-out reward", "tokens"} <= set(first["summary"])
    assert second["pairs"]["kept"] <= second["pairs"]["labelled"]
    page = (straight / "report.md").read_text()
    assert page.count("\n| ") == 4
    assert (straight / "curves.png").stat().st_size > 10_000
    margins = json.loads((straight / "round-1" / "margins.json").read_text())
    assert len(margins) == len((straight / "round-1" / "pairs.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "stage",
    [
        "round 2: judging",
        pytest.param("round 1: DPO", marks=pytest.mark.heavy),
        pytest.param("round 1: measuring, answers", marks=pytest.mark.heavy),
    ],
)
def test_a_cut_run_ends_as_an_unbroken_one(
    straight: Path, root: Path, world: Settings, tmp_path: Path, stage: str
) -> None:
    what = alignment_runs.plan(root, rounds=2)
    with pytest.raises(Killed):
        alignment_runs.run(what, tmp_path / "cut", world, killing_at(stage, 0))
    alignment_runs.run(what, tmp_path / "cut", world)
    assert alignment_runs.products(tmp_path / "cut") == alignment_runs.products(straight)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_command_killed_at_random_moments_ends_as_an_unbroken_one(
    straight: Path, root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    what = alignment_runs.plan(root, rounds=2).model_dump()
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in what.items()))
    program = [sys.executable, "-c", "from app.cli import app; app()", "align", str(config)]
    environment = {**os.environ, **offline_runs.make_environment(root, 1024)}

    def begun() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*program, "--out", str(tmp_path / "run")], env=environment)

    started = time.monotonic()
    while len(list((tmp_path / "run").glob("round-*/measures.json"))) < 3:
        process = begun()
        time.sleep(random.uniform(0.2, 1.0) * (10 + (time.monotonic() - started) / 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert begun().wait() == 0
    assert alignment_runs.products(tmp_path / "run") == alignment_runs.products(straight)


def test_a_server_rewards_as_this_process_does(root: Path, world: Settings) -> None:
    what, exchanges = alignment_runs.plan(root), tiny.random_items(12)
    with listening(loading.load_engine(world, quiet), world) as url:
        here, there = (run.scorers(what, world, quiet, where, None) for where in (None, url))
        for name in (reward_hacking.REWARD, reward_hacking.HELD_OUT):
            found = [[one.reward for one in some[name](exchanges)] for some in (here, there)]
            assert found[0] == pytest.approx(found[1], abs=offline_runs.CLOSE)


def test_only_the_same_run_goes_on(straight: Path, root: Path, world: Settings) -> None:
    with pytest.raises(DataError, match=r"begun with another beta \(0.1; now 0.2\)"):
        alignment_runs.run(alignment_runs.plan(root, rounds=2, beta=0.2), straight, world)


def test_a_stage_is_whole_or_not_there(tmp_path: Path) -> None:
    stages = RunArtifacts(tmp_path)

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise Killed

    with pytest.raises(Killed):
        stages.load_or_create_folder("adapter", fail)
    assert not (tmp_path / "adapter").exists()
    made = stages.load_or_create_folder("adapter", lambda folder: folder.mkdir())
    assert list(made.iterdir()) == []
    assert stages.load_or_create_json("one", lambda: 1) == stages.load_or_create_json("one", lambda: 2) == 1


def rounds(change: float, held: float) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Answers of two rounds in which two rewards move, and a summary in which nothing else does."""
    before = [{"reward": at * 0.1, "held-out reward": -at * 0.1} for at in range(30)]
    now = [
        {"reward": r["reward"] + change + 0.01 * at, "held-out reward": r["held-out reward"] + held}
        for at, r in enumerate(before)
    ]
    return before, now, {"kl": 0.1, "reward distance": {"mean": 50.0}}


@pytest.mark.parametrize(
    ("change", "held", "alarms"), [(1.0, -1.0, 1), (1.0, 1.0, 0), (-1.0, -1.0, 0), (1.0, 0.0, 0)]
)
def test_an_alarm_is_a_reward_that_rises_alone(root: Path, change: float, held: float, alarms: int) -> None:
    before, now, calm = rounds(change, held)
    what = alignment_runs.plan(root, max_kl=0.5, max_drift=20)
    assert len(reward_hacking.alarms(what, before, now, calm, calm)) == alarms


def test_kl_and_distance_have_bounds(root: Path) -> None:
    before, now, calm = rounds(0, 0)
    what = alignment_runs.plan(root, max_kl=0.5, max_drift=20)
    far = {"kl": 0.6, "reward distance": {"mean": 71.0}}
    kl, distance = reward_hacking.alarms(what, before, now, calm, far)
    assert "KL to the start is 0.60" in kl
    assert "21 percentile points further" in distance
    assert report.best([{"round": 0}, {"round": 1, "alarms": []}, {"round": 2, "alarms": [kl]}]) == 1


def test_a_run_stops_at_an_alarm(root: Path, world: Settings, tmp_path: Path) -> None:
    what = alignment_runs.plan(root, rounds=3, max_kl=1e-9, labels="data", held_out="")
    found = alignment_runs.run(what, tmp_path / "run", world)
    assert [row["round"] for row in found["rounds"]] == [0, 1]
    assert found["best"] == 0
    assert "Alarm after round 1: KL" in (tmp_path / "run" / "report.md").read_text()


def test_the_command_reads_a_plan_and_flags(
    root: Path, world: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(world.models_dir))
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(world.cache_dir))
    what = alignment_runs.plan(root, labels="reward", candidates=3, held_out="")
    config = tmp_path / "run.toml"
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in what.model_dump().items()))
    words = ("align", str(config), "--out", str(tmp_path / "run"))
    wrong = sparserm(*words, "--set", "betta=1")
    assert (wrong.exit_code, "betta: Extra inputs" in said(wrong)) == (1, True)
    done = sparserm(*words, "--per-round", 4, "--set", "epochs=1")
    assert done.exit_code == 0, done.output
    assert "# Aligning" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["per_round"] == 4


def test_a_plan_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = [")
    with pytest.raises(DataError, match=r"bad\.toml"):
        plans.read_config(tmp_path / "bad.toml")
    with pytest.raises(DataError, match="rounds: Input should be greater"):
        plans.read_config(None, prompts="a", test="b", model="c", rounds=0)


def test_an_exam_takes_whole_prompts(root: Path) -> None:
    exam = alignment_runs.exam(root)
    assert len(exam.pairs) == 20
    assert len(exam.choices) == 10
    assert all(len(choice.right) == len(choice.wrong) == 2 for choice in exam.choices)
    assert isinstance(exam.exchanges[0], Item)
