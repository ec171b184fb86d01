"""Server processes that start in a moment, serve as `sparserm serve` does, and can be made to fail.

They are forked from a process that has imported everything already. Texts with a trigger word make the device
fail where a real one would: inside the pass.
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
from app.serve import process
from app.serve.application import create_app
from app.serve.middleware import access_log
from app.settings import Settings
from app.types import ScoredItem, ScoreJob
from benchmarks.server import parse_samples

POISON, OVERFLOW, HUGE, DEATH, HANG, JUMP = "poison", "overflow", "huge", "death", "hang", "jump"
KEY = {"X-API-Key": "boss"}
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.server_processes", "transformers.models.llama.modeling_llama"])


class Faulty(Engine):
    """An engine whose passes fail on trigger words, as devices do."""

    dead = False

    def run(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        """A pass, or what becomes of it."""
        said = {word for job in prepared.jobs for word in self._words(job)}
        if DEATH in said or self.dead:
            self.dead = True
            raise RuntimeError("CUDA error: device-side assert triggered")
        if HANG in said:
            threading.Event().wait()
        if POISON in said:
            raise ValueError("an item that breaks the pass it is in")
        if HUGE in said and len(prepared.jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if JUMP in said:
            _jump()
        return super().run(prepared)

    def _run_forward(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        spoilt = [i for i, job in enumerate(prepared.jobs) if OVERFLOW in self._words(job)]
        if not spoilt:
            return super()._run_forward(prepared)
        whole, backbone = self.backbone.residuals, self.backbone

        def residuals(packed: PackedBatch, *given: Any) -> dict[int, Residuals]:
            found = whole(packed, *given)
            for i in spoilt:
                rows = packed.rows(i, 0, len(prepared.jobs[i].encoded.ids))
                for layer in found.values():
                    layer.values[torch.from_numpy(np.isin(layer.rows, rows))] = torch.inf
            return found

        backbone.residuals = residuals  # type: ignore[method-assign, assignment]
        try:
            return super()._run_forward(prepared)
        finally:
            del backbone.residuals

    def _words(self, job: ScoreJob) -> set[str]:
        return set("".join(self.text.decode(job.encoded.ids)).split())


@dataclass
class Server:
    """A process and how to speak to it: on a new connection each time."""

    process: BaseProcess
    url: str
    http: httpx.Client

    def ask(self, inputs: Sequence[dict[str, str]]) -> httpx.Response:
        """One request."""
        return self.http.post("/v1/rewards", json={"inputs": inputs, "top_k": 0})

    def metric(self, name: str) -> float:
        """The sum of a series over its labels."""
        return sum(sample.value for sample in parse_samples(self.http.get("/metrics").text, name))


@contextmanager
def running(settings: Settings, port: int) -> Iterator[Server]:
    """A server on a port of this machine, killed at the end if it still lives."""
    quiet = settings.model_copy(update={"port": port, "log_level": "error"})
    child = CONTEXT.Process(target=_serve, args=(quiet,))
    child.start()
    url, once = f"http://127.0.0.1:{port}", httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=60, limits=once, headers=KEY, verify=False) as http:  # noqa: S501 # plain HTTP
        try:
            server = Server(child, url, http)
            _until_ready(server)
            yield server
        finally:
            child.kill()
            child.join()


def _until_ready(server: Server) -> None:
    """Wait until it takes work."""
    for _ in range(1200):
        if server.process.exitcode is not None:
            raise RuntimeError(f"the server ended with {server.process.exitcode}")
        try:
            if server.http.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError("the server did not become ready")


def _serve(settings: Settings) -> None:
    torch.set_num_threads(1)
    engine = loading.load_engine(settings, lambda *_: None)
    engine.__class__ = Faulty
    access_log.configure_logging(settings.log_level)
    os._exit(process.run(create_app(engine, settings, CollectorRegistry()), settings))


def _jump() -> None:
    """The wall clock goes back and forth by hours."""
    step = 3600.0 * (-1) ** int(time.perf_counter() * 10)
    now = time.time
    time.time = lambda: now() + step
