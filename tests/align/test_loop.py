"""The alignment loop: stored artifacts, interrupted runs, alarms, and the command."""

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

from app.align import report, reward_hacking
from app.align.artifacts import RunArtifacts
from app.align.config import read_config
from app.align.run import make_reward_functions
from app.errors import DataError
from app.reward import loading
from app.settings import Settings
from app.types import Item
from tests.cli.test_commands import joined_output, sparserm
from tests.support import alignment_runs, offline_runs, tiny
from tests.support.servers import run_server
from tests.support.training_setup import Killed, ignore_progress, kill_in_stage


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny.build_models(tmp_path_factory.mktemp("aligning"))


@pytest.fixture(scope="module")
def root(settings: Settings) -> Path:
    return settings.models_dir.parent


@pytest.fixture(scope="module")
def uninterrupted(root: Path, settings: Settings) -> Path:
    """The folder of a run of two rounds that was not interrupted."""
    folder = root / "uninterrupted"
    alignment_runs.run(alignment_runs.make_config(root, rounds=2), folder, settings)
    return folder


def test_every_round_is_stored_and_reported(uninterrupted: Path) -> None:
    results = json.loads((uninterrupted / "report.json").read_text())
    assert [row["round"] for row in results["rounds"]] == [0, 1, 2]
    first, second, _ = results["rounds"]
    assert first["summary"]["kl"] == 0
    assert second["summary"]["kl"] != 0
    assert {"implicit accuracy", "mc1", "mc2", "reward", "held-out reward", "tokens"} <= set(first["summary"])
    assert second["pairs"]["kept"] <= second["pairs"]["labelled"]
    page = (uninterrupted / "report.md").read_text()
    assert page.count("\n| ") == 4
    assert (uninterrupted / "curves.png").stat().st_size > 10_000
    margins = json.loads((uninterrupted / "round-1" / "margins.json").read_text())
    assert len(margins) == len((uninterrupted / "round-1" / "pairs.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "stage",
    [
        "round 2: labelling",
        pytest.param("round 1: DPO", marks=pytest.mark.heavy),
        pytest.param("round 1: evaluation, responses", marks=pytest.mark.heavy),
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    uninterrupted: Path, root: Path, settings: Settings, tmp_path: Path, stage: str
) -> None:
    config = alignment_runs.make_config(root, rounds=2)
    with pytest.raises(Killed):
        alignment_runs.run(config, tmp_path / "interrupted", settings, kill_in_stage(stage, 0))
    alignment_runs.run(config, tmp_path / "interrupted", settings)
    artifacts = alignment_runs.read_artifacts(tmp_path / "interrupted")
    assert artifacts == alignment_runs.read_artifacts(uninterrupted)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_command_killed_at_random_times_ends_like_an_uninterrupted_one(
    uninterrupted: Path, root: Path, tmp_path: Path
) -> None:
    config_file = tmp_path / "run.toml"
    config = alignment_runs.make_config(root, rounds=2).model_dump()
    config_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items()))
    program = [sys.executable, "-c", "from app.cli import app; app()", "align", str(config_file)]
    environment = {**os.environ, **offline_runs.make_environment(root, 1024)}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*program, "--out", str(tmp_path / "run")], env=environment)

    started = time.monotonic()
    while len(list((tmp_path / "run").glob("round-*/measures.json"))) < 3:
        process = start()
        time.sleep(random.uniform(0.2, 1.0) * (10 + (time.monotonic() - started) / 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start().wait() == 0
    assert alignment_runs.read_artifacts(tmp_path / "run") == alignment_runs.read_artifacts(uninterrupted)


def test_a_server_returns_the_same_rewards_as_this_process(root: Path, settings: Settings) -> None:
    config, items = alignment_runs.make_config(root), tiny.random_items(12)
    with run_server(loading.load_engine(settings, ignore_progress), settings) as url:
        local, remote = (
            make_reward_functions(config, settings, ignore_progress, address, None) for address in (None, url)
        )
        for name in (reward_hacking.REWARD, reward_hacking.HELD_OUT):
            local_rewards, remote_rewards = (
                [item.reward for item in functions[name](items)] for functions in (local, remote)
            )
            assert local_rewards == pytest.approx(remote_rewards, abs=offline_runs.CLOSE)


def test_a_folder_is_resumed_only_with_the_same_config(
    uninterrupted: Path, root: Path, settings: Settings
) -> None:
    with pytest.raises(DataError, match=r"started with another beta \(0.1; now 0.2\)"):
        alignment_runs.run(alignment_runs.make_config(root, rounds=2, beta=0.2), uninterrupted, settings)


def test_an_artifact_is_complete_or_missing(tmp_path: Path) -> None:
    artifacts = RunArtifacts(tmp_path)

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise Killed

    with pytest.raises(Killed):
        artifacts.load_or_create_folder("adapter", fail)
    assert not (tmp_path / "adapter").exists()
    folder = artifacts.load_or_create_folder("adapter", lambda path: path.mkdir())
    assert list(folder.iterdir()) == []
    first = artifacts.load_or_create_json("value", lambda: 1)
    assert first == artifacts.load_or_create_json("value", lambda: 2) == 1


def make_responses(
    reward_change: float, held_out_change: float
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return responses of two rounds whose two rewards change, and a summary in which nothing else does."""
    before = [{"reward": i * 0.1, "held-out reward": -i * 0.1} for i in range(30)]
    after = [
        {
            "reward": row["reward"] + reward_change + 0.01 * i,
            "held-out reward": row["held-out reward"] + held_out_change,
        }
        for i, row in enumerate(before)
    ]
    return before, after, {"kl": 0.1, "reward distance": {"mean": 50.0}}


@pytest.mark.parametrize(
    ("reward_change", "held_out_change", "alarms"),
    [(1.0, -1.0, 1), (1.0, 1.0, 0), (-1.0, -1.0, 0), (1.0, 0.0, 0)],
)
def test_alarms_if_the_reward_rises_while_the_held_out_one_falls(
    root: Path, reward_change: float, held_out_change: float, alarms: int
) -> None:
    before, after, summary = make_responses(reward_change, held_out_change)
    config = alignment_runs.make_config(root, max_kl=0.5, max_drift=20)
    assert len(reward_hacking.find_alarms(config, before, after, summary, summary)) == alarms


def test_alarms_if_kl_or_distance_exceed_their_limits(root: Path) -> None:
    before, after, initial = make_responses(0, 0)
    config = alignment_runs.make_config(root, max_kl=0.5, max_drift=20)
    current = {"kl": 0.6, "reward distance": {"mean": 71.0}}
    kl, distance = reward_hacking.find_alarms(config, before, after, initial, current)
    assert "KL to the initial policy is 0.60" in kl
    assert "rose by 21 percentile points" in distance
    rounds: list[Any] = [{"round": 0}, {"round": 1, "alarms": []}, {"round": 2, "alarms": [kl]}]
    assert report.last_round_without_alarm(rounds) == 1


def test_a_run_stops_at_an_alarm(root: Path, settings: Settings, tmp_path: Path) -> None:
    config = alignment_runs.make_config(root, rounds=3, max_kl=1e-9, labels="data", held_out="")
    results = alignment_runs.run(config, tmp_path / "run", settings)
    assert [row["round"] for row in results["rounds"]] == [0, 1]
    assert results["best"] == 0
    assert "Alarm after round 1: KL" in (tmp_path / "run" / "report.md").read_text()


def test_the_command_reads_a_config_file_and_options(
    root: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_MODELS_DIR", str(settings.models_dir))
    monkeypatch.setenv("SPARSERM_CACHE_DIR", str(settings.cache_dir))
    config = alignment_runs.make_config(root, labels="reward", candidates=3, held_out="")
    config_file = tmp_path / "run.toml"
    values = config.model_dump().items()
    config_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values))
    arguments = ("align", str(config_file), "--out", str(tmp_path / "run"))
    failed = sparserm(*arguments, "--set", "betta=1")
    assert (failed.exit_code, "betta: Extra inputs" in joined_output(failed)) == (1, True)
    succeeded = sparserm(*arguments, "--per-round", 4, "--set", "epochs=1")
    assert succeeded.exit_code == 0, succeeded.output
    assert "# Aligning" in succeeded.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["per_round"] == 4


def test_an_invalid_config_is_rejected_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = [")
    with pytest.raises(DataError, match=r"bad\.toml"):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(DataError, match="rounds: Input should be greater"):
        read_config(None, prompts="a", test="b", model="c", rounds=0)


def test_an_evaluation_set_has_all_pairs_of_a_prompt(root: Path) -> None:
    evaluation = alignment_runs.build_evaluation_set(root)
    assert len(evaluation.pairs) == 20
    assert len(evaluation.questions) == 10
    assert all(len(question.right) == len(question.wrong) == 2 for question in evaluation.questions)
    assert isinstance(evaluation.items[0], Item)
