"""Measures, on this machine, how many tokens a batch should have and whether bfloat16 is faster.

Batch size: smaller batches return sooner and share the device more evenly, but too small ones leave it idle.
Where that happens depends on the machine, so two layers are timed at startup.

Precision: a GPU computes in bfloat16. Some CPUs multiply bfloat16 twice as fast as float32, others many times
slower, so a CPU is timed as well.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from app.backbone.backbone import Backbone
from app.backbone.linear import PackedLinear
from app.backbone.packing import PackedBatch, pack
from app.settings import Settings

BATCH_TOKEN_CANDIDATES = {"cpu": (1024, 2048), "cuda": (2048, 4096, 8192, 16384, 32768)}
ITEM_TOKENS = 256
"""Tokens of one item in a timed batch."""
BATCH_ROUNDS = 3
MIN_RATE_SHARE = 0.97
"""The smallest batch is chosen whose tokens per second reach this share of the best."""
MAX_PROBE_SHIFT = 0.05
"""How far bfloat16 may move a probe's reward, whose standard deviation is 1, unless it was requested."""
PRODUCT_ROWS = 256
PRODUCT_WIDTH = 1024
PRODUCT_ROUNDS = 15
MIN_BFLOAT16_SPEEDUP = 1.3


def measure_batch_tokens(backbone: Backbone) -> int:
    """Time forward passes of all candidate sizes and return the number of tokens a batch should have."""
    candidates = BATCH_TOKEN_CANDIDATES.get(backbone.device.type, BATCH_TOKEN_CANDIDATES["cuda"])
    batches = {tokens: _random_batch(tokens, int(backbone.config.vocab_size)) for tokens in candidates}
    rows_by_layer = {min(2, backbone.num_layers): np.array([0])}
    for packed in batches.values():
        backbone.residuals(packed, rows_by_layer)
    runs = {tokens: partial(backbone.residuals, packed, rows_by_layer) for tokens, packed in batches.items()}
    rounds = [{tokens: _time(run) for tokens, run in runs.items()} for _ in range(BATCH_ROUNDS)]
    return choose_batch_tokens({tokens: min(seconds[tokens] for seconds in rounds) for tokens in candidates})


def choose_batch_tokens(seconds: Mapping[int, float]) -> int:
    """Return the smallest number of tokens whose rate is close to the best, given the seconds per size."""
    rates = {tokens: tokens / duration for tokens, duration in seconds.items()}
    return min(tokens for tokens, rate in rates.items() if rate >= MIN_RATE_SHARE * max(rates.values()))


def resolve_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """Return the dtype that was requested; otherwise the one that models are trained and measured in."""
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def is_bfloat16_faster(settings: Settings, device: torch.device) -> bool:
    """Return whether no dtype was requested and this CPU is clearly faster in bfloat16."""
    if settings.dtype != "auto" or device.type != "cpu":
        return False
    inputs = [
        torch.ones(PRODUCT_ROWS, PRODUCT_WIDTH, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    products = [partial(PackedLinear(rows.new_ones(PRODUCT_WIDTH, PRODUCT_WIDTH)), rows) for rows in inputs]
    # The dtypes alternate, so that other load on the machine slows both of them.
    rounds = [[_time(product) for product in products] for _ in range(PRODUCT_ROUNDS)]
    float32_s, bfloat16_s = (min(seconds) for seconds in zip(*rounds, strict=True))
    return bool(float32_s > MIN_BFLOAT16_SPEEDUP * bfloat16_s)


def _random_batch(tokens: int, vocabulary_size: int) -> PackedBatch:
    """Return a batch of random items of typical length that share no prefixes."""
    rng = np.random.default_rng(tokens)
    ids = rng.integers(vocabulary_size, size=(tokens // ITEM_TOKENS, ITEM_TOKENS))
    return pack([tuple(item) for item in ids.tolist()])


def _time(run: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
