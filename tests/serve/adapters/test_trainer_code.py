"""The trainers' own code against a live server, each from its own wheel in a folder of its own."""

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sparserm_client import Client, Sample
from sparserm_client.trainers import AsyncTrlReward, TrlReward

from tests.support import tiny
from tests.support.paths import ROOT

pytestmark = pytest.mark.heavy
PROMPT, SAID = "amber river", ["quiet stone", "glass", "seven maple"]
RENDERED = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [f"{RENDERED}{said}<|im_end|>\n" for said in SAID]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Installs wheels into a folder each, with all they need, or (`alone`) without."""
    folder = tmp_path_factory.mktemp("wheels")

    def install(*whole: str, alone: str | None = None) -> list[Path]:
        targets = []
        for name in (*([alone] if alone else []), *whole):
            targets.append(folder / name)
            if not targets[-1].exists():
                options = ["--no-deps"] if name == alone else []
                pip = [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(targets[-1])]
                subprocess.run([*pip, name], check=True, capture_output=True)
        return targets

    return install


@pytest.fixture(scope="module")
def wanted(address: str) -> list[float]:
    with Client(address) as client:
        return [one.reward for one in client.rewards([Sample(PROMPT, said) for said in SAID])]


@pytest.fixture
def swept() -> Iterator[None]:
    """What a trainer leaves behind goes here, and not during somebody else's test."""
    yield
    gc.collect()


def run(script: str, paths: list[Path], *arguments: str) -> Any:
    """What a script of tests/foreign prints, with wheels on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.serve.adapters.trainer_clients.{script}", *arguments],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def close(values: Any) -> Any:
    return pytest.approx(values, abs=1e-5)


def test_openrlhf(address: str, wheels: Any, root: Path, wanted: list[float]) -> None:
    paths = wheels("aiohttp", alone="openrlhf==0.11.2")
    found = run(
        "openrlhf_client", paths, f"{address}/get_reward", str(root / "backbone"), json.dumps([RENDERED] * 6)
    )
    assert found["rewards"] == [close([wanted[0]])] * 6
    assert found["info"]["reward"] == close([wanted[0]] * 6)
    assert len(found["info"]["rm/uncertainty"]) == 6
    assert all(0 <= score <= 1 for score in found["info"]["score"])


def test_llamafactory(address: str, wheels: Any, wanted: list[float]) -> None:
    paths = wheels("requests", alone="llamafactory==0.9.5")
    found = run("llamafactory_client", paths, f"{address}/v1/score/evaluation", json.dumps(TEXTS))
    assert found["rewards"] == close(wanted)


@pytest.mark.parametrize("release", ["0.9.1", "0.8.0"])
def test_verl(release: str, address: str, wheels: Any, wanted: list[float]) -> None:
    found = run("verl_client", wheels(alone=f"verl=={release}"), address, PROMPT, json.dumps(SAID))
    assert found["rewards"] == close(wanted)


def test_openai(address: str, wheels: Any, wanted: list[float]) -> None:
    found = run("openai_client", wheels("openai==3.54.0"), address, json.dumps(TEXTS))
    assert found["rewards"] == close(wanted)


def test_cohere(address: str, wheels: Any, wanted: list[float]) -> None:
    paths = wheels("cohere==7.3.1")
    found = run("cohere_client", paths, address, PROMPT, json.dumps(SAID))["rewards"]
    order = sorted(range(3), key=lambda i: -wanted[i])[:2]
    assert [index for index, _ in found] == order
    assert [score for _, score in found] == close([1 / (1 + math.exp(-wanted[i])) for i in order])


def test_the_hub_s_client_reads_predictions(address: str, wanted: list[float]) -> None:
    found = run("hub_client", [], address, json.dumps(TEXTS))
    assert found["rewards"] == close([1 / (1 + math.exp(-reward)) for reward in wanted])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TRL never ends its loop
@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("awaited", [False, True])
def test_trl_trains_with_our_rewards(awaited: bool, address: str, root: Path, tmp_path: Path) -> None:  # noqa: FBT001 # a parameter of the test
    from trl import GRPOConfig, GRPOTrainer

    reward = (AsyncTrlReward if awaited else TrlReward)(address, model="alpha")
    trainer = GRPOTrainer(
        model=str(root / "backbone"),
        reward_funcs=reward,
        train_dataset=_prompts(),
        args=_config(GRPOConfig, tmp_path),
    )
    trainer.train()
    _rewards_were_logged(trainer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nor its reward functions
@pytest.mark.usefixtures("swept")
def test_trl_rloo_trains_with_our_rewards(address: str, root: Path, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    reward = TrlReward(address, model="alpha")
    trainer = RLOOTrainer(
        model=str(root / "backbone"),
        reward_funcs=reward,
        train_dataset=_prompts(),
        args=_config(RLOOConfig, tmp_path),
    )
    trainer.train()
    _rewards_were_logged(trainer)


def _prompts() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": [{"role": "user", "content": word}]} for word in tiny.WORDS])


def _config(kind: Any, folder: Path) -> Any:
    return kind(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=12, use_cpu=True, bf16=False, report_to=[], logging_steps=1, save_strategy="no",
        activation_checkpointing=False,
    )  # fmt: skip


def _rewards_were_logged(trainer: Any) -> None:
    rows = [row for row in trainer.state.log_history if "rewards/sparserm_alpha/mean" in row]
    assert len(rows) == 3
    assert all(math.isfinite(row["rewards/sparserm_alpha/mean"]) for row in rows)
    assert any(row["rewards/sparserm_alpha/std"] > 0 for row in rows)
