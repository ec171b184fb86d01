"""What tests of alignment share: a tiny policy, and pairs in which 'amber' is what people like."""

import json
import random
from pathlib import Path
from typing import Any

from app.align import config as plans
from app.align import metrics
from app.align import run as alignment_run
from app.align.artifacts import JsonRow
from app.align.config import AlignmentConfig
from app.align.policy import model
from app.align.policy.model import Policy
from app.data.pairs import read_pairs
from app.settings import Settings
from tests.support import tiny
from tests.support.training_setup import quiet

OPEN = {"max_kl": 1e3, "max_drift": 1e3}


def lesson(root: Path, count: int = 40) -> tuple[Path, Path]:
    """Pairs to learn from and pairs to measure on, of other prompts."""
    rng = random.Random(0)
    words = [word for word in tiny.WORDS if word != "amber"]
    made = []
    for name, first in (("learn", "river"), ("test", "stone")):
        rows = []
        for n in range(count):
            plain = " ".join(rng.choices(words, k=4))
            row = {"prompt": f"{first} {n // 2}?", "chosen": f"amber {plain}", "rejected": f"{plain} glass"}
            rows.append({**row, "kind": "reference", "best": n % 2 == 0})
        made.append(root / f"{name}.jsonl")
        made[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made[0], made[1]


def plan(root: Path, **given: Any) -> AlignmentConfig:
    """A run of seconds on the tiny world under a folder."""
    learn, test = lesson(root)
    return plans.read_config(
        None,
        **{
            "prompts": str(learn), "test": str(test), "model": "alpha", "held_out": "gamma",
            "policy": str(root / "backbone"), "rounds": 1, "per_round": 6, "new_tokens": 5, "epochs": 1,
            "batch": 2, "step": 2, "lr": 5e-3, "answered": 4, "compared": 8, "max_tokens": 256, **OPEN,
            **given,
        },
    )  # fmt: skip


def run(what: AlignmentConfig, folder: Path, settings: Settings, report: Any = quiet) -> JsonRow:
    return alignment_run.run(what, folder, settings, report, refresh=quiet)


def start(root: Path, settings: Settings) -> Policy:
    return model.load_policy(str(root / "backbone"), settings, 256, quiet)


def exam(root: Path) -> metrics.Exam:
    return metrics.exam(read_pairs(lesson(root)[1]), 20, 6)


def products(folder: Path) -> dict[str, bytes]:
    """Everything a run has made that a second run must make again."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in {".json", ".jsonl", ".safetensors", ".md"}
        and file.name not in {"adapter_config.json", "README.md"}
    }  # fmt: skip
