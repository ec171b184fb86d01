"""Trainings that need nothing of each other, side by side, each on its share of the threads.

The products of a small head are too small to be shared: threads that wait for each other at every one of
them take longer than threads that each train a head of their own (benchmarks/LOG.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def run_in_parallel(works: Sequence[Callable[[], T]], report: Callable[[float], None]) -> list[T]:
    """What each work gives, in order; as many at once as there are threads."""
    threads = torch.get_num_threads()
    done: list[T] = []
    for start in range(0, len(works), threads):
        done += _at_once(works[start : start + threads], threads)
        report(len(done) / len(works))
    return done


def _at_once(works: Sequence[Callable[[], T]], threads: int) -> list[T]:
    if len(works) == 1:
        return [works[0]()]
    share = threads // len(works)
    try:
        with ThreadPoolExecutor(len(works), "abreast", torch.set_num_threads, (share,)) as pool:
            return list(pool.map(lambda work: work(), works))
    finally:
        torch.set_num_threads(threads)
