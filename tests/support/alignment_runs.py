"""Shared by the alignment tests: a tiny policy, and pairs whose preferred response contains 'amber'."""

import json
import random
from pathlib import Path
from typing import Any

from app.align import metrics
from app.align.artifacts import JsonRow
from app.align.config import AlignmentConfig, read_config
from app.align.policy.model import Policy, load_policy
from app.align.run import run_alignment
from app.data.pairs import read_pairs
from app.settings import Settings
from tests.support import tiny
from tests.support.training_setup import ignore_progress

NO_LIMITS = {"max_kl": 1e3, "max_drift": 1e3}


def write_pairs(root: Path, count: int = 40) -> tuple[Path, Path]:
    """Write training pairs, and test pairs with other prompts."""
    rng = random.Random(0)
    words = [word for word in tiny.WORDS if word != "amber"]
    files = []
    for name, first in (("train", "river"), ("test", "stone")):
        rows = []
        for n in range(count):
            plain = " ".join(rng.choices(words, k=4))
            row = {"prompt": f"{first} {n // 2}?", "chosen": f"amber {plain}", "rejected": f"{plain} glass"}
            rows.append({**row, "kind": "reference", "best": n % 2 == 0})
        files.append(root / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files[0], files[1]


def make_config(root: Path, **overrides: Any) -> AlignmentConfig:
    """Return the configuration of a run that takes seconds with the tiny models in a folder."""
    train, test = write_pairs(root)
    return read_config(
        None,
        **{
            "prompts": str(train), "test": str(test), "model": "alpha", "held_out": "gamma",
            "policy": str(root / "backbone"), "rounds": 1, "per_round": 6, "new_tokens": 5, "epochs": 1,
            "batch": 2, "step": 2, "lr": 5e-3, "answered": 4, "compared": 8, "max_tokens": 256, **NO_LIMITS,
            **overrides,
        },
    )  # fmt: skip


def run(
    config: AlignmentConfig, folder: Path, settings: Settings, progress: Any = ignore_progress
) -> JsonRow:
    return run_alignment(config, folder, settings, progress, on_round_end=ignore_progress)


def load_initial_policy(root: Path, settings: Settings) -> Policy:
    return load_policy(str(root / "backbone"), settings, 256, ignore_progress)


def build_evaluation_set(root: Path) -> metrics.EvaluationSet:
    return metrics.build_evaluation_set(read_pairs(write_pairs(root)[1]), 20, 6)


def read_artifacts(folder: Path) -> dict[str, bytes]:
    """Return the content of all files that every run with the same configuration creates identically."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in {".json", ".jsonl", ".safetensors", ".md"}
        and file.name not in {"adapter_config.json", "README.md"}
    }  # fmt: skip
