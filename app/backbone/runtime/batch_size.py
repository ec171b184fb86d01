"""How many tokens a pass should hold: as few as keep the device as busy as it gets.

Fewer tokens a pass answer sooner and share the device more evenly; too few leave it idle. Where that turns is
a fact of the machine, so two layers are timed at the start.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from app.backbone.backbone import Backbone
from app.backbone.packing import PackedBatch, pack

SIZES = {"cpu": (1024, 2048), "cuda": (2048, 4096, 8192, 16384, 32768)}
LENGTH, ROUNDS, ENOUGH = 256, 3, 0.97


def budget(backbone: Backbone) -> int:
    """Tokens a pass of this backbone on this machine."""
    sizes = SIZES.get(backbone.device.type, SIZES["cuda"])
    passes = {size: _pass(size, int(backbone.config.vocab_size)) for size in sizes}
    reads = {min(2, backbone.num_layers): np.array([0])}
    for packed in passes.values():
        backbone.residuals(packed, reads)
    works = {size: partial(backbone.residuals, packed, reads) for size, packed in passes.items()}
    rounds = [{size: _seconds(work) for size, work in works.items()} for _ in range(ROUNDS)]
    return fewest({size: min(one[size] for one in rounds) for size in sizes})


def fewest(seconds: Mapping[int, float]) -> int:
    """The smallest size whose rate is nearly the best."""
    rates = {size: size / took for size, took in seconds.items()}
    return min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def _pass(size: int, vocabulary: int) -> PackedBatch:
    """Items of usual length that share nothing."""
    ids = np.random.default_rng(size).integers(vocabulary, size=(size // LENGTH, LENGTH))
    return pack([tuple(item) for item in ids.tolist()])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
