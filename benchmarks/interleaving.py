"""Lets servers share a machine by turns: while one runs, all processes of the others are suspended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import psutil

from benchmarks.server import ServerProcess

Servers = Sequence[ServerProcess]


@contextmanager
def suspended(starting: AbstractContextManager[Servers]) -> Iterator[Servers]:
    """Start servers and suspend all their processes, except inside `resumed`."""
    with starting as servers:
        _for_each_process(servers, psutil.Process.suspend)
        try:
            yield servers
        finally:
            _for_each_process(servers, psutil.Process.resume)


@contextmanager
def resumed(servers: Servers) -> Iterator[Servers]:
    """Let suspended servers run until the block ends."""
    _for_each_process(servers, psutil.Process.resume)
    try:
        yield servers
    finally:
        _for_each_process(servers, psutil.Process.suspend)


def _for_each_process(servers: Servers, action: Callable[[psutil.Process], None]) -> None:
    for server in servers:
        root = psutil.Process(server.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                action(process)
