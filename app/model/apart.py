"""Work in a thread of its own that ends with it.

OpenMP keeps a team for every thread that has computed and still lives. When all teams together have more
threads than there are cores, they sleep at each of a pass's many barriers, where they would else spin for a
moment. So where a thread lives to run passes, nobody else who computes may live on.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What comes of it; who interrupts does not wait for it."""
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
