"""Shared setup of training tests: a tiny backbone and preference pairs in which 'amber' is preferred."""

import json
import random
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.train import head_training, jobs, pipeline
from app.train.sae import jobs as sae_jobs
from tests.support import tiny


def quiet(*_: Any) -> None:
    pass


def build(root: Path) -> Settings:
    """A tiny backbone, chats and pairs in which 'amber' is what people like."""
    tiny.save_backbone(root / "backbone")
    rng = random.Random(0)
    words = [word for word in tiny.WORDS if word != "amber"]
    chats, pairs = [], []
    for n in range(500):
        talk = [
            {"role": r, "content": " ".join(rng.choices(tiny.WORDS, k=12))} for r in ("user", "assistant")
        ]
        chats.append({"messages": talk})
        plain = rng.choices(words, k=6)
        liked = [*plain[:3], "amber", "amber", *plain[3:]]
        pairs.append(
            {"prompt": f"river {n % 90}?", "chosen": " ".join(liked), "rejected": " ".join([*plain, "glass"])}
        )
    for name, rows in (("chats", chats), ("pairs", pairs[:400]), ("test", pairs[400:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny.make_settings(root)


def build_sae(training_settings: Settings) -> Path:
    root = training_settings.models_dir.parent
    what = sae_jobs.SaeTrainingConfig(str(root / "backbone"), 3, 128, 8, 8000, 2048 * 24, 0)
    facts = sae_jobs.train_and_measure(
        what, [str(root / "chats.jsonl")], root / "sae", training_settings, quiet
    )
    assert facts["quality"]["l0"] > 0
    return root / "sae"


def order(
    training_settings: Settings, trained_sae: Path, name: str, **choices: Any
) -> pipeline.TrainingConfig:
    root = training_settings.models_dir.parent
    test = str(root / "test.jsonl") if choices.pop("tested", False) else None
    plan = head_training.HeadTrainingConfig(heads=3, hidden=16, seed=choices.pop("seed", 0))
    terms = choices.pop("terms", "CC0")
    return jobs.build_training_config(
        name, str(root / "pairs.jsonl"), test, terms=terms, sae=trained_sae, bad=None,
        **{"k": 16, "limit": 200, "plan": plan, **choices},
    )  # fmt: skip


class Killed(Exception):
    """Stands for the signal: raised where a run would have been cut."""


def killing(after: int) -> Any:
    heard = 0

    def report(*_: Any) -> None:
        nonlocal heard
        heard += 1
        if heard > after:
            raise Killed

    return report


def killing_at(stage: str, after: int) -> Any:
    """The same, but only calls about one stage count."""
    inner = killing(after)
    return lambda heard, _share: inner() if heard == stage else None
