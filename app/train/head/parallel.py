"""Runs independent trainings in parallel, each on its share of torch's threads.

The matrix products of a small head are too small to be split: threads that synchronise at every product take
longer than threads that each train a head of their own (benchmarks/LOG.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def run_in_parallel(tasks: Sequence[Callable[[], T]], progress: Callable[[float], None]) -> list[T]:
    """Return the results of the tasks, in order; as many run at once as torch has threads.

    `progress` receives the share of finished tasks. The caller's number of threads is restored afterwards,
    also if a task fails.
    """
    threads = torch.get_num_threads()
    results: list[T] = []
    for start in range(0, len(tasks), threads):
        results += _run_at_once(tasks[start : start + threads], threads)
        progress(len(results) / len(tasks))
    return results


def _run_at_once(tasks: Sequence[Callable[[], T]], threads: int) -> list[T]:
    if len(tasks) == 1:
        return [tasks[0]()]
    threads_each = threads // len(tasks)
    try:
        with ThreadPoolExecutor(
            len(tasks), "parallel-training", torch.set_num_threads, (threads_each,)
        ) as pool:
            return list(pool.map(lambda task: task(), tasks))
    finally:
        torch.set_num_threads(threads)
