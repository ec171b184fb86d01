"""What the StandardRM costs as TRL ships it, which pads, and reads a prompt once an answer.

Both ways on the same few pairs, in turns. One pair is a batch, so that it pads as little as it can.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.align.policy import trl_trainers
from app.backbone.tokenization import Text
from app.types import Pair
from benchmarks.research import standard_rm


def timed(
    backbone: Path,
    text: Text,
    pairs: Sequence[Pair],
    count: int,
    plan: standard_rm.StandardPlan,
    report: Callable[[str, float], None],
) -> dict[str, Any]:
    """Processor time of an epoch on some of the pairs, as it ships and with both answers in one row."""
    some = random.Random(plan.seed).sample(pairs, min(count, len(pairs)))  # no secret
    spent = {"stock": 0.0, "siblings": 0.0}
    for turn, part in enumerate((some[::2], some[1::2])):
        for done, way in enumerate(sorted(spent, reverse=bool(turn))):
            report("in turns", (2 * turn + done) / 4)
            spent[way] += _epoch(backbone, text, part, plan, stock=way == "stock")
    report("in turns", 1.0)
    costs = {way: round(seconds, 1) for way, seconds in spent.items()}
    return {"pairs": len(some), "threads": torch.get_num_threads(), "cpu_seconds": costs}


def _epoch(
    backbone: Path, text: Text, pairs: list[Pair], plan: standard_rm.StandardPlan, *, stock: bool
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        once = replace(plan, epochs=1)
        trainer = standard_rm.trainer(backbone, text, pairs, once, Path(folder), stock=stock)
        trl_trainers.add_callbacks(trainer, lambda _: None)
        _, before = standard_rm.clocks()
        trl_trainers.train_or_resume(trainer, Path(folder))
        return standard_rm.clocks()[1] - before
