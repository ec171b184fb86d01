"""What the tests of several processes behind one address share."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from app.types import Item

PROGRAM = [sys.executable, "-c", "from app.cli import app; app()"]
ADMIN = {"X-API-Key": "boss"}
KEYS = "mine,admin=boss,metrics=eye"


class Served:
    """A front and what stands behind it: `worker` is what its processes are known by."""

    def __init__(self, process: "subprocess.Popen[str]", client: httpx.Client, worker: str) -> None:
        self.process = process
        self.client = client
        self._worker = worker

    @property
    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if self._worker in " ".join(child.cmdline())]

    def metric(self, name: str, **labels: str) -> float:
        text = self.client.get("/metrics").text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def rewards(self, items: list[dict[str, str]], **more: Any) -> list[float]:
        answer = self.client.post("/v1/rewards", json={"inputs": items, "top_k": 0, **more})
        assert answer.status_code == 200, answer.text
        return [row["reward"] for row in answer.json()["data"]]

    def until_ready(self) -> None:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            assert self.process.poll() is None
            try:
                if self.client.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError("not ready")


@contextmanager
def serving(port: int, environment: Mapping[str, str], *options: str, worker: str) -> Iterator[Served]:
    """`sparserm serve` with options, until the block ends; then nothing of it is left."""
    given = {**environment, "SPARSERM_API_KEYS": KEYS, "SPARSERM_MAX_BATCH_TOKENS": "1024"}
    command = [*PROGRAM, "serve", "--port", str(port), *options]
    with (
        subprocess.Popen(command, env=given, stderr=subprocess.DEVNULL, text=True) as front,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=ADMIN) as client,
    ):
        found = Served(front, client, worker)
        try:
            found.until_ready()
            yield found
        finally:
            left = psutil.Process(front.pid).children(recursive=True) if front.poll() is None else []
            front.terminate()
            front.wait(60)
            _, alive = psutil.wait_procs(left, 30)
            for process in alive:
                process.kill()
    assert not alive


def inputs(exchanges: list[Item]) -> list[dict[str, str]]:
    return [{"prompt": one.messages[0].content, "response": one.response} for one in exchanges]
