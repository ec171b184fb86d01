"""kill -9 at a random moment, start again: the result is the one an unbroken run gives."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.settings import Settings


def command(*words: str, home: Path) -> "subprocess.Popen[bytes]":
    """The command line as a process of its own, with its own cache and models."""
    environment = {
        **os.environ,
        "SPARSERM_CACHE_DIR": str(home / "cache"),
        "SPARSERM_MODELS_DIR": str(home / "models"),
        "SPARSERM_DEVICE": "cpu",
        "SPARSERM_DTYPE": "float32",
    }
    home.mkdir(exist_ok=True)
    program = [sys.executable, "-c", "from app.cli import app; app()", *words]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(program, env=environment, cwd=home, stdout=nowhere, stderr=nowhere)


def broken_and_straight(root: Path, *words: str) -> None:
    """The same command twice: once to its end, once killed at a random moment and started again."""
    started = time.monotonic()
    assert command(*words, home=root / "straight").wait() == 0
    lasted = time.monotonic() - started
    first = command(*words, home=root / "broken")
    time.sleep(random.uniform(0.3, 0.95) * lasted)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert command(*words, home=root / "broken").wait() == 0


@pytest.mark.heavy
def test_a_killed_training_ends_in_the_same_bundle(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    folder = training_settings.models_dir.parent
    pairs, test = str(folder / "pairs.jsonl"), str(folder / "test.jsonl")
    broken_and_straight(
        tmp_path, "train", pairs, "--task", "killed", "--sae", str(trained_sae), "--test", test, "--k", "16"
    )
    sums = [
        (tmp_path / run / "models" / "killed" / "SHA256SUMS").read_text() for run in ("straight", "broken")
    ]
    assert sums[0] == sums[1]


@pytest.mark.heavy
def test_a_killed_sae_training_ends_in_the_same_sae(training_settings: Settings, tmp_path: Path) -> None:
    folder = training_settings.models_dir.parent
    broken_and_straight(
        tmp_path, "sae", "train", str(folder / "chats.jsonl"), "--backbone", str(folder / "backbone"),
        "--out", "sae", "--layer", "3", "--width", "128", "--k", "8", "--rows", "8000",
        "--samples", "1000000",
    )  # fmt: skip
    weights = [
        (tmp_path / run / "sae" / "sae_weights.safetensors").read_bytes() for run in ("straight", "broken")
    ]
    assert weights[0] == weights[1]
