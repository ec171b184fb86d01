"""What the tests of offline runs share: rows to score, and functions that score them."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from app.cli import app
from app.offline import run as offline_run
from app.offline.checkpoint import RunCheckpoint
from app.offline.local import LocalScorer
from app.offline.run import OfflineRunConfig
from app.offline.scorers import ScoringRequest
from app.offline.tasks import Task
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import tiny

MODEL = "alpha"
CLOSE = 1e-5
BAD_ROW = '{"prompt": "x"}\n'


def make_response_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows with a prompt, a response and their number `n`."""
    return [
        {"n": n, "prompt": item.messages[0].content, "response": item.response}
        for n, item in enumerate(tiny.random_items(count, seed))
    ]


def make_pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows with a prompt, two responses and their number `n`."""
    others = tiny.random_items(count, seed + 1)
    return [
        {
            "n": row["n"],
            "prompt": row["prompt"],
            "chosen": row["response"],
            "rejected": f"{other.response} glass",
        }
        for row, other in zip(make_response_rows(count, seed), others, strict=True)
    ]


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    """Write each row as a line of JSON, and each string as it is."""
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def read_rows(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_task(
    engine: Engine, settings: Settings, task: Task, source: Path | str, output: Path, *,
    progress: Any = lambda *_: None, batch_tokens: int = 64, top_k: int = 3, **options: Any,
) -> RunCheckpoint:  # fmt: skip
    """Run a task in this process; small batches make many chunks."""
    request = ScoringRequest(MODEL, top_k, paired=task.paired)
    scorer = LocalScorer(engine, request, settings)
    config = OfflineRunConfig(task, request, str(source), output, **options)
    return offline_run.run_offline(config, nullcontext(scorer), progress, batch_tokens=batch_tokens)


def make_environment(root: Path, batch_tokens: int = 64) -> dict[str, str]:
    """Return the environment of a command that uses the tiny models; small batches make many chunks."""
    return {
        "SPARSERM_CACHE_DIR": str(root / "cache"), "SPARSERM_MODELS_DIR": str(root / "models"),
        "SPARSERM_DEVICE": "cpu", "SPARSERM_DTYPE": "float32", "SPARSERM_MAX_TOKENS": "256",
        "SPARSERM_MAX_BATCH_TOKENS": str(batch_tokens),
    }  # fmt: skip


def score_in_process(source: Path, output: Path, environment: dict[str, str]) -> None:
    """Run `sparserm score`, as a process of its own does."""
    os.environ |= environment
    torch.set_num_threads(1)
    app(["score", str(source), str(output), "--model", MODEL], standalone_mode=False)


def insert_bad_rows(rows: list[dict[str, Any]]) -> list[Any]:
    """Return the rows with a bad row after every 37th."""
    return [line for row in rows for line in ((row, BAD_ROW) if row["n"] % 37 == 5 else (row,))]
