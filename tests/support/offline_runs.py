"""What the tests of bulk jobs share: rows to score, and one way to have them scored."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from app.cli import app
from app.offline import run as offline_run
from app.offline.checkpoint import Mark
from app.offline.local import Resident
from app.offline.run import Order
from app.offline.scorers import Question
from app.offline.tasks import Task
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import tiny

MODEL = "alpha"
CLOSE = 1e-5
BAD = '{"prompt": "x"}\n'


def responses(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a prompt and a response, and a number to know them by."""
    return [
        {"n": n, "prompt": one.messages[0].content, "response": one.response}
        for n, one in enumerate(tiny.babble(count, seed))
    ]


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a prompt and two responses."""
    others = tiny.babble(count, seed + 1)
    return [
        {
            "n": row["n"],
            "prompt": row["prompt"],
            "chosen": row["response"],
            "rejected": f"{other.response} glass",
        }
        for row, other in zip(responses(count, seed), others, strict=True)
    ]


def write(file: Path, rows: Sequence[Any]) -> Path:
    """A row a line; a string is a line as it stands."""
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(
    engine: Engine, settings: Settings, task: Task, source: Path | str, out: Path, *,
    report: Any = lambda *_: None, pass_tokens: int = 64, top_k: int = 3, **choices: Any,
) -> Mark:  # fmt: skip
    """A job in this process; its windows are small, so that there are many."""
    question = Question(MODEL, top_k, paired=task.paired)
    resident = Resident(engine, question, settings)
    order = Order(task, question, str(source), out, **choices)
    return offline_run.run(order, nullcontext(resident), report, pass_tokens=pass_tokens)


def environ(root: Path, pass_tokens: int = 64) -> dict[str, str]:
    """The tiny world; with small passes there are many windows."""
    return {
        "SPARSERM_CACHE_DIR": str(root / "cache"), "SPARSERM_MODELS_DIR": str(root / "models"),
        "SPARSERM_DEVICE": "cpu", "SPARSERM_DTYPE": "float32", "SPARSERM_MAX_TOKENS": "256",
        "SPARSERM_MAX_BATCH_TOKENS": str(pass_tokens),
    }  # fmt: skip


def scored(source: Path, out: Path, environment: dict[str, str]) -> None:
    """What a process of its own does: the command, as typed."""
    os.environ |= environment
    torch.set_num_threads(1)
    app(["score", str(source), str(out), "--model", MODEL], standalone_mode=False)


def mixed(rows: list[dict[str, Any]]) -> list[Any]:
    """Rows with a bad one here and there."""
    return [one for row in rows for one in ((row, BAD) if row["n"] % 37 == 5 else (row,))]
