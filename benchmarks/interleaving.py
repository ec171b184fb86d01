"""Servers that share a machine in turns: who does not have the turn is stopped altogether."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import psutil

from benchmarks.server import ServerProcess

Servers = Sequence[ServerProcess]


@contextmanager
def suspended(starting: AbstractContextManager[Servers]) -> Iterator[Servers]:
    """Start servers, and stop all of their processes for as long as they are not awake."""
    with starting as servers:
        _tell(servers, psutil.Process.suspend)
        try:
            yield servers
        finally:
            _tell(servers, psutil.Process.resume)


@contextmanager
def resumed(servers: Servers) -> Iterator[Servers]:
    """The turn of these."""
    _tell(servers, psutil.Process.resume)
    try:
        yield servers
    finally:
        _tell(servers, psutil.Process.suspend)


def _tell(servers: Servers, what: Callable[[psutil.Process], None]) -> None:
    for server in servers:
        root = psutil.Process(server.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                what(process)
