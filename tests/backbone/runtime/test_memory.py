"""Memory that is used again and again is not fetched again and again."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from app.backbone.runtime import memory

ROUNDS, PAGES = 10, 3 * 2048


def test_what_was_freed_is_there_for_the_next_pass() -> None:
    """In a process of its own, as this cannot be undone; without it every round faults on every page."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_faults).result() < PAGES


def _faults() -> int:
    """Of some rounds that take three times 8 MiB and give them back, after as many others."""
    memory.keep()
    found = []
    for _ in range(2 * ROUNDS):
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        held = [torch.ones(2**21) for _ in range(3)]
        del held
    return found[-1] - found[ROUNDS]
