"""Shared setup of training tests: a tiny backbone and preference pairs in which 'amber' is preferred."""

import json
import random
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.train import jobs, pipeline
from app.train.head.network import NetworkHeadConfig
from app.train.sae import jobs as sae_jobs
from tests.support import tiny


def ignore_progress(*_: Any) -> None:
    """A progress callback that does nothing."""


def write_training_data(root: Path) -> Settings:
    """Write a tiny backbone, chats, and pairs in which responses with 'amber' are preferred."""
    tiny.save_backbone(root / "backbone")
    rng = random.Random(0)
    words = [word for word in tiny.WORDS if word != "amber"]
    chats, pairs = [], []
    for n in range(500):
        messages = [
            {"role": role, "content": " ".join(rng.choices(tiny.WORDS, k=12))}
            for role in ("user", "assistant")
        ]
        chats.append({"messages": messages})
        rejected = rng.choices(words, k=6)
        chosen = [*rejected[:3], "amber", "amber", *rejected[3:]]
        pairs.append(
            {
                "prompt": f"river {n % 90}?",
                "chosen": " ".join(chosen),
                "rejected": " ".join([*rejected, "glass"]),
            }
        )
    for name, rows in (("chats", chats), ("pairs", pairs[:400]), ("test", pairs[400:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.make_settings(root)


def train_tiny_sae(training_settings: Settings) -> Path:
    """Train an SAE on the chats; return its folder."""
    root = training_settings.models_dir.parent
    config = sae_jobs.SaeTrainingConfig(str(root / "backbone"), 3, 128, 8, 8000, 2048 * 24, 0)
    provenance = sae_jobs.train_and_measure(
        config, [str(root / "chats.jsonl")], root / "sae", training_settings, ignore_progress
    )
    assert provenance["quality"]["l0"] > 0
    return root / "sae"


def training_config(
    training_settings: Settings,
    trained_sae: Path,
    name: str,
    *,
    with_test: bool = False,
    seed: int = 0,
    data_license: str = "CC0",
    **choices: Any,
) -> pipeline.TrainingConfig:
    """Return the configuration of a small model; `choices` are further fields of it."""
    root = training_settings.models_dir.parent
    test = str(root / "test.jsonl") if with_test else None
    head = NetworkHeadConfig(heads=3, hidden=16, seed=seed)
    return jobs.build_training_config(
        name, str(root / "pairs.jsonl"), test, data_license=data_license, source=trained_sae, on_bad_row=None,
        **{"k": 16, "max_pairs": 200, "head": head, **choices},
    )  # fmt: skip


class Killed(Exception):
    """Raised by a progress callback where a run is to be interrupted, in place of a signal."""


def kill_after(count: int) -> Any:
    """Return a progress callback that raises Killed on every call after the first `count`."""
    calls = 0

    def progress(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            raise Killed

    return progress


def kill_in_stage(stage: str, count: int) -> Any:
    """Return a progress callback like `kill_after` that counts the calls of one stage only."""
    kill = kill_after(count)
    return lambda current_stage, _share: kill() if current_stage == stage else None
