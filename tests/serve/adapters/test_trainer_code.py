"""The trainers' own clients get rewards from a live server; each is installed from its wheel."""

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
PROMPT, RESPONSES = "amber river", ["quiet stone", "glass", "seven maple"]
PROMPT_TEXT = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [f"{PROMPT_TEXT}{response}<|im_end|>\n" for response in RESPONSES]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that installs each wheel into a folder; `alone` is installed without dependencies."""
    folder = tmp_path_factory.mktemp("wheels")

    def install(*names: str, alone: str | None = None) -> list[Path]:
        folders = []
        for name in (*([alone] if alone else []), *names):
            folders.append(folder / name)
            if not folders[-1].exists():
                options = ["--no-deps"] if name == alone else []
                pip = [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(folders[-1])]
                subprocess.run([*pip, name], check=True, capture_output=True)
        return folders

    return install


@pytest.fixture(scope="module")
def expected_rewards(address: str) -> list[float]:
    with Client(address) as client:
        return [
            reward.reward for reward in client.rewards([Sample(PROMPT, response) for response in RESPONSES])
        ]


@pytest.fixture
def collect_garbage_after() -> Iterator[None]:
    """Collect a trainer's garbage here, so that its warnings do not appear in another test."""
    yield
    gc.collect()


def run_script(script: str, paths: list[Path], *arguments: str) -> Any:
    """Return what a script of trainer_clients prints as JSON, with the wheels on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT)])}
    process = subprocess.run(
        [sys.executable, "-m", f"tests.serve.adapters.trainer_clients.{script}", *arguments],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def approximately(values: Any) -> Any:
    return pytest.approx(values, abs=1e-5)


def test_openrlhf_client(address: str, wheels: Any, root: Path, expected_rewards: list[float]) -> None:
    paths = wheels("aiohttp", alone="openrlhf==0.11.2")
    output = run_script(
        "openrlhf_client",
        paths,
        f"{address}/get_reward",
        str(root / "backbone"),
        json.dumps([PROMPT_TEXT] * 6),
    )
    assert output["rewards"] == [approximately([expected_rewards[0]])] * 6
    assert output["info"]["reward"] == approximately([expected_rewards[0]] * 6)
    assert len(output["info"]["rm/uncertainty"]) == 6
    assert all(0 <= score <= 1 for score in output["info"]["score"])


def test_llamafactory_client(address: str, wheels: Any, expected_rewards: list[float]) -> None:
    paths = wheels("requests", alone="llamafactory==0.9.5")
    output = run_script("llamafactory_client", paths, f"{address}/v1/score/evaluation", json.dumps(TEXTS))
    assert output["rewards"] == approximately(expected_rewards)


@pytest.mark.parametrize("release", ["0.9.1", "0.8.0"])
def test_verl_reward_function(release: str, address: str, wheels: Any, expected_rewards: list[float]) -> None:
    output = run_script(
        "verl_client", wheels(alone=f"verl=={release}"), address, PROMPT, json.dumps(RESPONSES)
    )
    assert output["rewards"] == approximately(expected_rewards)


def test_openai_client(address: str, wheels: Any, expected_rewards: list[float]) -> None:
    output = run_script("openai_client", wheels("openai==3.54.0"), address, json.dumps(TEXTS))
    assert output["rewards"] == approximately(expected_rewards)


def test_cohere_client(address: str, wheels: Any, expected_rewards: list[float]) -> None:
    paths = wheels("cohere==7.3.1")
    output = run_script("cohere_client", paths, address, PROMPT, json.dumps(RESPONSES))["rewards"]
    order = sorted(range(3), key=lambda i: -expected_rewards[i])[:2]
    assert [index for index, _ in output] == order
    assert [score for _, score in output] == approximately(
        [1 / (1 + math.exp(-expected_rewards[i])) for i in order]
    )


def test_huggingface_hub_client(address: str, expected_rewards: list[float]) -> None:
    output = run_script("hub_client", [], address, json.dumps(TEXTS))
    assert output["rewards"] == approximately([1 / (1 + math.exp(-reward)) for reward in expected_rewards])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TRL never ends its loop
@pytest.mark.usefixtures("collect_garbage_after")
@pytest.mark.parametrize("awaited", [False, True])
def test_trl_trains_with_our_rewards(awaited: bool, address: str, root: Path, tmp_path: Path) -> None:  # noqa: FBT001 # a parameter of the test
    from trl import GRPOConfig, GRPOTrainer

    reward = (AsyncTrlReward if awaited else TrlReward)(address, model="alpha")
    trainer = GRPOTrainer(
        model=str(root / "backbone"),
        reward_funcs=reward,
        train_dataset=_prompt_dataset(),
        args=_build_config(GRPOConfig, tmp_path),
    )
    trainer.train()
    _check_logged_rewards(trainer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nor its reward functions
@pytest.mark.usefixtures("collect_garbage_after")
def test_trl_rloo_trains_with_our_rewards(address: str, root: Path, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    reward = TrlReward(address, model="alpha")
    trainer = RLOOTrainer(
        model=str(root / "backbone"),
        reward_funcs=reward,
        train_dataset=_prompt_dataset(),
        args=_build_config(RLOOConfig, tmp_path),
    )
    trainer.train()
    _check_logged_rewards(trainer)


def _prompt_dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": [{"role": "user", "content": word}]} for word in tiny.WORDS])


def _build_config(config_class: Any, folder: Path) -> Any:
    return config_class(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=12, use_cpu=True, bf16=False, report_to=[], logging_steps=1, save_strategy="no",
        activation_checkpointing=False,
    )  # fmt: skip


def _check_logged_rewards(trainer: Any) -> None:
    rows = [row for row in trainer.state.log_history if "rewards/sparserm_alpha/mean" in row]
    assert len(rows) == 3
    assert all(math.isfinite(row["rewards/sparserm_alpha/mean"]) for row in rows)
    assert any(row["rewards/sparserm_alpha/std"] > 0 for row in rows)
