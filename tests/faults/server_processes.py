"""Server processes that start quickly, serve as `sparserm serve` does, and fail on demand.

They are forked from a process that has already imported everything. A trigger word in a text makes the device
fail where a real one would: inside the forward pass.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import httpx
import numpy as np
import torch
from prometheus_client import CollectorRegistry

from app.backbone.backbone import Residuals
from app.backbone.packing import PackedBatch
from app.errors import NonFiniteScore
from app.reward import loading
from app.reward.engine import Engine, PreparedBatch
from app.scores import ScoredItem
from app.serve import process
from app.serve.application import create_app
from app.serve.middleware import access_log
from app.settings import Settings
from app.types import ScoreJob
from benchmarks.server import parse_samples

RAISE_WORD = "poison"
OVERFLOW_WORD = "overflow"
OUT_OF_MEMORY_WORD = "huge"
DEVICE_LOST_WORD = "death"
HANG_WORD = "hang"
CLOCK_JUMP_WORD = "jump"
ADMIN_HEADERS = {"X-API-Key": "boss"}
FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["tests.faults.server_processes", "transformers.models.llama.modeling_llama"]
)


class FaultyEngine(Engine):
    """An engine whose forward passes fail on trigger words, as devices do."""

    is_device_lost = False

    def run(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        """Run the batch, or fail as its trigger words say; a lost device stays lost."""
        words = {word for job in prepared.jobs for word in self._words(job)}
        if DEVICE_LOST_WORD in words or self.is_device_lost:
            self.is_device_lost = True
            raise RuntimeError("CUDA error: device-side assert triggered")
        if HANG_WORD in words:
            threading.Event().wait()
        if RAISE_WORD in words:
            raise ValueError("an item that makes its forward pass fail")
        if OUT_OF_MEMORY_WORD in words and len(prepared.jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if CLOCK_JUMP_WORD in words:
            _make_clock_jump()
        return super().run(prepared)

    def _run_forward(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        overflowing = [i for i, job in enumerate(prepared.jobs) if OVERFLOW_WORD in self._words(job)]
        if not overflowing:
            return super()._run_forward(prepared)
        original, backbone = self.backbone.residuals, self.backbone

        def residuals(packed: PackedBatch, *args: Any) -> dict[int, Residuals]:
            residuals_by_layer = original(packed, *args)
            for i in overflowing:
                rows = packed.rows(i, 0, len(prepared.jobs[i].encoded.ids))
                for layer in residuals_by_layer.values():
                    layer.values[torch.from_numpy(np.isin(layer.rows, rows))] = torch.inf
            return residuals_by_layer

        backbone.residuals = residuals  # type: ignore[method-assign, assignment]
        try:
            return super()._run_forward(prepared)
        finally:
            del backbone.residuals

    def _words(self, job: ScoreJob) -> set[str]:
        return set("".join(self.text.decode(job.encoded.ids)).split())


@dataclass
class FaultyServer:
    """A server process and a client that uses a new connection for each request."""

    process: BaseProcess
    url: str
    http: httpx.Client

    def request_rewards(self, inputs: Sequence[dict[str, str]]) -> httpx.Response:
        """Send one request."""
        return self.http.post("/v1/rewards", json={"inputs": inputs, "top_k": 0})

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over all labels."""
        return sum(sample.value for sample in parse_samples(self.http.get("/metrics").text, name))


@contextmanager
def run_faulty_server(settings: Settings, port: int) -> Iterator[FaultyServer]:
    """Run a server on a port of this machine; it is killed at the end."""
    quiet_settings = settings.model_copy(update={"port": port, "log_level": "error"})
    child = FORKSERVER.Process(target=_serve, args=(quiet_settings,))
    child.start()
    url, no_keepalive = f"http://127.0.0.1:{port}", httpx.Limits(max_keepalive_connections=0)
    options: dict[str, Any] = {"timeout": 60, "limits": no_keepalive, "headers": ADMIN_HEADERS}
    with httpx.Client(base_url=url, verify=False, **options) as http:  # noqa: S501 # plain HTTP
        try:
            server = FaultyServer(child, url, http)
            _wait_until_ready(server)
            yield server
        finally:
            child.kill()
            child.join()


def _wait_until_ready(server: FaultyServer) -> None:
    """Wait until the server accepts requests."""
    for _ in range(1200):
        if server.process.exitcode is not None:
            raise RuntimeError(f"the server exited with {server.process.exitcode}")
        try:
            if server.http.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError("the server did not become ready")


def _serve(settings: Settings) -> None:
    torch.set_num_threads(1)
    engine = loading.load_engine(settings, lambda *_: None)
    engine.__class__ = FaultyEngine
    access_log.configure_logging(settings.log_level)
    os._exit(process.run(create_app(engine, settings, CollectorRegistry()), settings))


def _make_clock_jump() -> None:
    """Make the wall clock jump forward or back by an hour."""
    step = 3600.0 * (-1) ** int(time.perf_counter() * 10)
    now = time.time
    time.time = lambda: now() + step
