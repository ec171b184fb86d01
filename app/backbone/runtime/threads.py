"""How compute threads wait for each other, and which threads may keep OpenMP workers.

The threads of a forward pass synchronise at many barriers. Sleeping at each barrier loses a tenth or more of
the speed of an idle machine; spinning as long as OpenMP does by default loses half of it while another
process is busy (benchmarks/LOG.md). So threads spin for a short time.

OpenMP keeps worker threads for every thread that has computed and is still alive. When all these workers
together outnumber the cores, they sleep at barriers regardless of the spin count. So while a thread runs
forward passes, no other thread that has computed may stay alive: other computation runs in temporary threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

OPENMP_SPIN_COUNT = 10_000
T = TypeVar("T")


def limit_openmp_spinning() -> None:
    """Set OpenMP's spin count unless the environment sets it or a wait policy; call before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(OPENMP_SPIN_COUNT))


def plan_concurrent_batches(requested: int, device_type: str) -> tuple[int, Callable[[int], None]]:
    """Return how many batches run concurrently on a device, and a function that sets a thread's share.

    The function takes the number of batches that the compute threads are divided among and applies to the
    calling thread. With `requested` 0, two batches run where there are two threads, as measured, since a
    forward pass with one thread waits at no barriers; otherwise one.
    """
    import torch

    threads = torch.get_num_threads() if device_type == "cpu" else 1
    count = min(requested or (2 if threads == 2 else 1), threads)

    def set_thread_share(num_shares: int) -> None:
        if count > 1:
            torch.set_num_threads(threads // num_shares)

    return count, set_thread_share


def run_in_temporary_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it, and return its result or raise its exception.

    An interrupt of the calling thread does not wait for the work to end.
    """
    result: Future[T] = Future()
    thread = Thread(target=_set_result, args=(result, work), name="temporary", daemon=True)
    thread.start()
    thread.join()
    return result.result()


def _set_result(result: Future[T], work: Callable[[], T]) -> None:
    try:
        result.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
        result.set_exception(error)
