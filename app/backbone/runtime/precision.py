"""What the products of a backbone are computed in.

A GPU takes 16 bits. A CPU is asked: some multiply them twice as fast as 32, others many times slower.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from app.backbone.linear import PackedLinear
from app.settings import Settings

FAITHFUL = 0.05
"""Most that a probe's reward, whose deviation is 1, may move where 16 bits were not asked for."""
ROWS, WIDE, ROUNDS, WORTH = 256, 1024, 15, 1.3


def exact(settings: Settings, device: torch.device) -> torch.dtype:
    """As asked for; else what a model is trained and measured in."""
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def halves(settings: Settings, device: torch.device) -> bool:
    """Whether a CPU that may choose is faster in 16 bits."""
    if settings.dtype != "auto" or device.type != "cpu":
        return False
    both = [torch.ones(ROWS, WIDE, dtype=one) for one in (torch.float32, torch.bfloat16)]
    works = [partial(PackedLinear(rows.new_ones(WIDE, WIDE)), rows) for rows in both]
    rounds = [[_seconds(one) for one in works] for _ in range(ROUNDS)]  # in turns: others may work meanwhile
    whole, half = (min(taken) for taken in zip(*rounds, strict=True))
    return bool(whole > WORTH * half)


def _seconds(work: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
