"""Memory that a forward pass frees is used again without page faults."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from app.backbone.runtime import memory

ROUNDS = 10
PAGES = 3 * 2048
"""Pages of the tensors of one round."""


def test_freed_memory_is_reused_without_page_faults() -> None:
    """Runs in its own process, as it cannot be undone. By default, each round faults on every page."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_count_page_faults).result() < PAGES


def _count_page_faults() -> int:
    """Page faults of ROUNDS rounds that allocate and free three times 8 MiB, after as many warm-up rounds."""
    memory.keep_freed_memory()
    faults = []
    for _ in range(2 * ROUNDS):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        tensors = [torch.ones(2**21) for _ in range(3)]
        del tensors
    return faults[-1] - faults[ROUNDS]
