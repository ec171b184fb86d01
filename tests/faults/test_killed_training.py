"""Training killed at a random moment and restarted gives the same result as an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.settings import Settings


def start_command(*words: str, home: Path) -> "subprocess.Popen[bytes]":
    """Start the command line in a process, with its own cache and models."""
    environment = {
        **os.environ,
        "SPARSERM_CACHE_DIR": str(home / "cache"),
        "SPARSERM_MODELS_DIR": str(home / "models"),
        "SPARSERM_DEVICE": "cpu",
        "SPARSERM_DTYPE": "float32",
    }
    home.mkdir(exist_ok=True)
    program = [sys.executable, "-c", "from app.cli import app; app()", *words]
    devnull = subprocess.DEVNULL
    return subprocess.Popen(program, env=environment, cwd=home, stdout=devnull, stderr=devnull)


def run_with_and_without_kill(root: Path, *words: str) -> None:
    """Run a command to its end, and once more killed at a random moment and started again."""
    started = time.monotonic()
    assert start_command(*words, home=root / "uninterrupted").wait() == 0
    duration = time.monotonic() - started
    process = start_command(*words, home=root / "interrupted")
    time.sleep(random.uniform(0.3, 0.95) * duration)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start_command(*words, home=root / "interrupted").wait() == 0


@pytest.mark.heavy
def test_killed_training_gives_the_same_bundle(
    training_settings: Settings, trained_sae: Path, tmp_path: Path
) -> None:
    folder = training_settings.models_dir.parent
    pairs, test = str(folder / "pairs.jsonl"), str(folder / "test.jsonl")
    run_with_and_without_kill(
        tmp_path, "train", pairs, "--task", "killed", "--sae", str(trained_sae), "--test", test, "--k", "16"
    )
    checksums = [
        (tmp_path / run / "models" / "killed" / "SHA256SUMS").read_text()
        for run in ("uninterrupted", "interrupted")
    ]
    assert checksums[0] == checksums[1]


@pytest.mark.heavy
def test_killed_sae_training_gives_the_same_sae(training_settings: Settings, tmp_path: Path) -> None:
    folder = training_settings.models_dir.parent
    run_with_and_without_kill(
        tmp_path, "sae", "train", str(folder / "chats.jsonl"), "--backbone", str(folder / "backbone"),
        "--out", "sae", "--layer", "3", "--width", "128", "--k", "8", "--rows", "8000",
        "--samples", "1000000",
    )  # fmt: skip
    weights = [
        (tmp_path / run / "sae" / "sae_weights.safetensors").read_bytes()
        for run in ("uninterrupted", "interrupted")
    ]
    assert weights[0] == weights[1]
