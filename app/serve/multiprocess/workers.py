"""Several processes on one host, each with a device, or a share of the cores, to itself.

They listen on sockets in a folder that only this user can open. One that ends, for whatever reason, is
started again; what it was asked, another one is asked.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

import httpx

from app.errors import Closing, SourceError
from app.serve.multiprocess.gateway import Asked, Said
from app.serve.multiprocess.prefix_routing import Affinity, Texts, texts

log = logging.getLogger("sparserm")
SPAWN = multiprocessing.get_context("spawn")
CONNECT_S, IDLE_S, LOOK_S, GRACE_S = 5.0, 0.5, 0.05, 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S, SOUND_S = 0.1, 30.0, 60.0
TRIES = 2  # a request that ends whoever reads it is not passed on for ever
AWAY = 503


class Place(NamedTuple):
    """Which worker a process is, where it listens, and which models it serves, if that was changed."""

    number: int
    socket: Path
    models: tuple[str, ...] = ()


def attach() -> None:
    """In a worker: stay apart from the terminal's signals, and end when the front has ended."""
    os.setsid()
    threading.Thread(target=_follow, daemon=True).start()


class Worker:
    """A process that serves, and the way to it."""

    def __init__(self, serve: Callable[[Place], None], place: Place) -> None:
        self.name = place.socket.name
        self.ready = False
        self.process = SPAWN.Process(target=serve, args=(place,), name=f"worker {place.number}")
        self._socket = str(place.socket)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_S)
        self._way = httpx.AsyncHTTPTransport(uds=self._socket, limits=limits)
        self.process.start()

    def look(self) -> bool:
        """Whether it is ready by now; SourceError if it ended before it was."""
        if not self.process.is_alive():
            code = self.process.exitcode
            raise SourceError(f"{self.process.name} ended with {code} before it was ready")
        with socket.socket(socket.AF_UNIX) as way, suppress(OSError):
            way.connect(self._socket)
            self.ready = True
        return self.ready

    async def ask(self, asked: Asked) -> Said:
        """Its answer, or httpx.TransportError."""
        request = httpx.Request(
            asked.method,
            "http://worker",
            headers=list(asked.headers),
            content=asked.body,
            extensions={"timeout": {"connect": CONNECT_S}, "target": asked.target},
        )
        response = await self._way.handle_async_request(request)
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        headers = tuple((name.lower(), value) for name, value in response.headers.raw)
        return Said(response.status_code, headers, body)

    async def ended(self) -> int | None:
        """Wait until its process has ended; its exit status."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.process.sentinel, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self.process.sentinel)
        self.ready = False
        self.process.join()
        await self._way.aclose()
        return self.process.exitcode


class Workers:
    """So many of them, as peers behind a front; `serve` is what a worker's process does."""

    def __init__(self, serve: Callable[[Place], None], number: int, *, drain_s: int) -> None:
        self._serve = serve
        self._number = number
        self._drain_s = drain_s
        self._workers: dict[int, Worker] = {}
        self._models: tuple[str, ...] = ()
        self._affinity = Affinity()
        self._changing = asyncio.Lock()
        self._births = count()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="sparserm-")
        try:
            for some in (range(1), range(1, self._number)):  # the first may have a backbone to fetch
                _await(self._start(index) for index in some)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End them all, unless the app has done so at its own end."""
        alive = [worker.process for worker in self._workers.values() if worker.process.is_alive()]
        for process in alive:
            process.terminate()
        until = time.monotonic() + self._drain_s + GRACE_S
        for process in alive:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
            process.join()
        self._folder.cleanup()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Whoever ends is started again; at the end of the app all are ended."""
        keeping = [asyncio.create_task(self._keep(index)) for index in self._workers]
        try:
            yield
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.to_thread(self.__exit__)

    @property
    def number(self) -> int:
        """How many there should be."""
        return self._number

    async def one(self, asked: Asked) -> Said:
        """The answer of the one that has read most of it, or has least to do; another one's if that ends."""
        found, tried = texts(asked.body), set[str]()
        said = None
        while len(tried) < TRIES and (there := self._there.keys() - tried):
            name = self._affinity.ranked(found, there)[0]
            with suppress(httpx.TransportError):
                said = await self._from(self._there[name], asked, found)
                if said.status != AWAY:
                    return said
            tried.add(name)
        return said or _nobody()

    async def each(self, asked: Asked) -> Mapping[str, Said]:
        """The answers of all that are there."""
        return await _answers(self._there.values(), asked)

    async def change(self, asked: Asked) -> Said:
        """First one of them; if that agrees the others, and whoever of them does not is started again."""
        async with self._changing:
            if len(self._there) < self._number:
                raise Closing("a worker is starting; nothing was changed", code="not_ready")
            first, *others = self._there.values()
            said = (await _answers([first], asked)).get(first.name) or _nobody()
            if said.status != 200:
                return said
            self._models = await _served(first, asked)
            agreed = await _answers(others, asked)
            for worker in others:
                if worker.name not in agreed or agreed[worker.name].status != 200:
                    worker.process.terminate()
            return said

    @property
    def _there(self) -> dict[str, Worker]:
        return {worker.name: worker for worker in self._workers.values() if worker.ready}

    async def _from(self, worker: Worker, asked: Asked, found: Texts) -> Said:
        new = self._affinity.begin(found, worker.name)
        try:
            return await worker.ask(asked)
        finally:
            self._affinity.end(worker.name, new)

    async def _keep(self, index: int) -> None:
        """Start a worker again whenever it has ended; later and later, if it always ends at once."""
        pause, began = FIRST_PAUSE_S, time.monotonic()
        while True:
            status = await self._workers[index].ended()
            log.error("worker %d ended with %s; another one is started", index, status)
            pause = FIRST_PAUSE_S if time.monotonic() - began > SOUND_S else pause
            await asyncio.sleep(pause)
            pause, began = min(2 * pause, LONGEST_PAUSE_S), time.monotonic()
            async with self._changing:
                worker = self._start(index)
            with suppress(SourceError):
                while not worker.look():  # noqa: ASYNC110 - another process cannot set an event
                    await asyncio.sleep(LOOK_S)
            self._affinity.keep(self._there)

    def _start(self, index: int) -> Worker:
        path = Path(self._folder.name) / f"{index}-{next(self._births)}"
        self._workers[index] = Worker(self._serve, Place(index, path, self._models))
        return self._workers[index]


def _await(workers: Iterable[Worker]) -> None:
    """Wait until all of them are ready."""
    waiting = list(workers)
    while waiting := [worker for worker in waiting if not worker.look()]:
        time.sleep(LOOK_S)


async def _answers(workers: Iterable[Worker], asked: Asked) -> dict[str, Said]:
    """What each says, but for those that end meanwhile."""
    asking = {worker.name: worker.ask(asked) for worker in workers}
    heard = await asyncio.gather(*asking.values(), return_exceptions=True)
    return {name: said for name, said in zip(asking, heard, strict=True) if isinstance(said, Said)}


async def _served(worker: Worker, asked: Asked) -> tuple[str, ...]:
    """The models of a worker, asked for as whoever asked for a change."""
    target = asked.target.partition(b"/v1/models/")[0] + b"/v1/models"
    cards = json.loads((await worker.ask(Asked("GET", target, asked.headers))).body)["data"]
    return tuple(card["id"] for card in cards if "composite" not in card)


def _nobody() -> Said:
    raise Closing("no worker is ready", code="not_ready")


def _follow() -> None:
    front = multiprocessing.parent_process()
    if front is not None:
        front.join()
        os.kill(os.getpid(), signal.SIGTERM)
