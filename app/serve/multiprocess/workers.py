"""Worker processes on one host, each with a device, or a share of the CPU cores, to itself.

Workers listen on sockets in a folder that only this user can open. A worker that ends, for any reason, is
started again, and its requests are sent to another worker.
"""

import asyncio
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
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import httpx

from app.errors import ServiceUnavailable, SourceError
from app.serve.multiprocess.gateway import ProxiedRequest, UpstreamResponse
from app.serve.multiprocess.prefix_routing import PrefixRouter, RequestTexts, hash_texts

log = logging.getLogger("sparserm")
SPAWN = multiprocessing.get_context("spawn")
CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 0.5
READY_POLL_S = 0.05
# How long workers may take to end after the time they have to drain; then they are killed.
KILL_GRACE_S = 10.0
# The delay before an ended worker is started again doubles, unless the worker ran longer than STABLE_S.
MIN_RESTART_DELAY_S = 0.1
MAX_RESTART_DELAY_S = 30.0
STABLE_S = 60.0
# Limits how many workers a request can end if it crashes each worker that reads it.
MAX_ATTEMPTS = 2
UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker's index, its socket, and the models it serves; if empty, those of the settings."""

    index: int
    socket: Path
    models: tuple[str, ...] = ()


def detach_from_terminal() -> None:
    """Ignore the terminal's signals, and end when the gateway's process ends; called in a worker."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()


class Worker:
    """A worker process, and the transport to its socket."""

    def __init__(self, serve: Callable[[WorkerSpec], None], spec: WorkerSpec) -> None:
        self.name = spec.socket.name
        self.ready = False
        self.process = SPAWN.Process(target=serve, args=(spec,), name=f"worker {spec.index}")
        self._socket = str(spec.socket)
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S
        )
        self._transport = httpx.AsyncHTTPTransport(uds=self._socket, limits=limits)
        self.process.start()

    def check_ready(self) -> bool:
        """Return whether the worker accepts connections; SourceError if it has ended."""
        if not self.process.is_alive():
            code = self.process.exitcode
            raise SourceError(f"{self.process.name} ended with exit code {code} before it was ready")
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(self._socket)
            self.ready = True
        return self.ready

    async def send(self, request: ProxiedRequest) -> UpstreamResponse:
        """Return the worker's response to a request; raises httpx.TransportError if the worker ends."""
        response = await self._transport.handle_async_request(
            httpx.Request(
                request.method,
                "http://worker",
                headers=list(request.headers),
                content=request.body,
                extensions={"timeout": {"connect": CONNECT_TIMEOUT_S}, "target": request.target},
            )
        )
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        headers = tuple((name.lower(), value) for name, value in response.headers.raw)
        return UpstreamResponse(response.status_code, headers, body)

    async def wait_ended(self) -> int | None:
        """Wait until the process has ended; return its exit code."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self.process.sentinel)
        self.ready = False
        self.process.join()
        await self._transport.aclose()
        return self.process.exitcode


class WorkerPool:
    """A fixed number of workers, as a ServerPool for the gateway; `serve` is what a worker's process runs."""

    def __init__(self, serve: Callable[[WorkerSpec], None], size: int, *, drain_s: int) -> None:
        self._serve = serve
        self._size = size
        self._drain_s = drain_s
        self._workers: dict[int, Worker] = {}
        self._models: tuple[str, ...] = ()
        self._router = PrefixRouter()
        self._change_lock = asyncio.Lock()
        self._starts = count()

    def __enter__(self) -> Self:
        """Start all workers and wait until they are ready."""
        self._folder = tempfile.TemporaryDirectory(prefix="sparserm-")
        try:
            # The first one starts alone, because it may have to download the backbone.
            for indices in (range(1), range(1, self._size)):
                _wait_until_ready(self._start(index) for index in indices)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers, unless `run` has already done so."""
        alive = [worker.process for worker in self._workers.values() if worker.process.is_alive()]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + self._drain_s + KILL_GRACE_S
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        self._folder.cleanup()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Restart workers that end; end all of them when the block ends."""
        tasks = [asyncio.create_task(self._restart_when_ended(index)) for index in self._workers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(self.__exit__)

    @property
    def size(self) -> int:
        """The number of workers that should be running."""
        return self._size

    async def forward(self, request: ProxiedRequest) -> UpstreamResponse:
        """Return the response of the worker that the router ranks first, or of the next one if it ends."""
        texts, tried = hash_texts(request.body), set[str]()
        response = None
        while len(tried) < MAX_ATTEMPTS and (untried := self._ready.keys() - tried):
            name = self._router.rank(texts, untried)[0]
            with suppress(httpx.TransportError):
                response = await self._send(self._ready[name], request, texts)
                if response.status != UNAVAILABLE:
                    return response
            tried.add(name)
        return response or _raise_not_ready()

    async def broadcast(self, request: ProxiedRequest) -> Mapping[str, UpstreamResponse]:
        """Return the responses of all workers that are ready."""
        return await _send_to_all(self._ready.values(), request)

    async def change_models(self, request: ProxiedRequest) -> UpstreamResponse:
        """Change the models of one worker and, if it succeeds, of the others; one that fails is restarted."""
        async with self._change_lock:
            if len(self._ready) < self._size:
                raise ServiceUnavailable("a worker is starting; nothing was changed", code="not_ready")
            first, *others = self._ready.values()
            response = (await _send_to_all([first], request)).get(first.name) or _raise_not_ready()
            if response.status != 200:
                return response
            self._models = await _get_models(first, request)
            responses = await _send_to_all(others, request)
            for worker in others:
                if worker.name not in responses or responses[worker.name].status != 200:
                    worker.process.terminate()
            return response

    @property
    def _ready(self) -> dict[str, Worker]:
        return {worker.name: worker for worker in self._workers.values() if worker.ready}

    async def _send(self, worker: Worker, request: ProxiedRequest, texts: RequestTexts) -> UpstreamResponse:
        new_bytes = self._router.start_request(texts, worker.name)
        try:
            return await worker.send(request)
        finally:
            self._router.finish_request(worker.name, new_bytes)

    async def _restart_when_ended(self, index: int) -> None:
        """Restart a worker whenever it has ended, with increasing delay after repeated crashes."""
        delay_s, started = MIN_RESTART_DELAY_S, time.monotonic()
        while True:
            code = await self._workers[index].wait_ended()
            log.error("worker %d ended with exit code %s and is restarted", index, code)
            delay_s = MIN_RESTART_DELAY_S if time.monotonic() - started > STABLE_S else delay_s
            await asyncio.sleep(delay_s)
            delay_s, started = min(2 * delay_s, MAX_RESTART_DELAY_S), time.monotonic()
            async with self._change_lock:
                worker = self._start(index)
            with suppress(SourceError):
                while not worker.check_ready():  # noqa: ASYNC110 - another process cannot set an event
                    await asyncio.sleep(READY_POLL_S)
            self._router.set_servers(self._ready)

    def _start(self, index: int) -> Worker:
        path = Path(self._folder.name) / f"{index}-{next(self._starts)}"
        self._workers[index] = Worker(self._serve, WorkerSpec(index, path, self._models))
        return self._workers[index]


def _wait_until_ready(workers: Iterable[Worker]) -> None:
    waiting = list(workers)
    while waiting := [worker for worker in waiting if not worker.check_ready()]:
        time.sleep(READY_POLL_S)


async def _send_to_all(workers: Iterable[Worker], request: ProxiedRequest) -> dict[str, UpstreamResponse]:
    """Return the responses of the workers that did not end meanwhile, by worker name."""
    sends = {worker.name: worker.send(request) for worker in workers}
    responses = await asyncio.gather(*sends.values(), return_exceptions=True)
    return {
        name: response
        for name, response in zip(sends, responses, strict=True)
        if isinstance(response, UpstreamResponse)
    }


async def _get_models(worker: Worker, request: ProxiedRequest) -> tuple[str, ...]:
    """Return the models that a worker serves, without composites; `request` supplies the credentials."""
    target = request.target.partition(b"/v1/models/")[0] + b"/v1/models"
    response = await worker.send(ProxiedRequest("GET", target, request.headers))
    return tuple(card["id"] for card in response.json()["data"] if "composite" not in card)


def _raise_not_ready() -> UpstreamResponse:
    raise ServiceUnavailable("no worker is ready; try again later", code="not_ready")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
