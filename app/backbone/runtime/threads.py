"""How the threads of a pass wait for each other at its many barriers: awake, but not for long.

Sleeping at each of them loses a tenth or more of the speed of an idle machine; staying awake like OpenMP
loses half of it beside a busy neighbour (benchmarks/LOG.md). OpenMP keeps a team for every thread that has
computed and still lives, and when all teams together have more threads than there are cores, all sleep
nonetheless. So where a thread lives to run passes, nobody else who has a team may live on.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

SPINS = 10_000
T = TypeVar("T")


def stay_awake_briefly() -> None:
    """Before torch is loaded, and unless somebody has decided otherwise."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def lanes(wanted: int, kind: str) -> tuple[int, Callable[[int], None]]:
    """How many passes run side by side on a device, and how a thread is told among how many it has its cores.

    Two where there are two threads, as was measured: a pass of one thread waits for no other.
    """
    import torch

    threads = torch.get_num_threads() if kind == "cpu" else 1
    count = min(wanted or (2 if threads == 2 else 1), threads)
    return count, lambda among: torch.set_num_threads(threads // among) if count > 1 else None


def apart(work: Callable[[], T]) -> T:
    """What comes of work in a thread that ends with it; who interrupts does not wait for it."""
    done: Future[T] = Future()
    thread = Thread(target=_into, args=(done, work), name="apart", daemon=True)
    thread.start()
    thread.join()
    return done.result()


def _into(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is the caller's
        done.set_exception(error)
