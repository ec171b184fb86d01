"""What the tests of several server processes behind one address share."""

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


class ServerGroup:
    """A gateway and the servers behind it, whose command lines contain `worker_pattern`."""

    def __init__(self, process: "subprocess.Popen[str]", client: httpx.Client, worker_pattern: str) -> None:
        self.process = process
        self.client = client
        self._worker_pattern = worker_pattern

    @property
    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if self._worker_pattern in " ".join(child.cmdline())]

    def metric(self, name: str, **labels: str) -> float:
        text = self.client.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def score(self, inputs: list[dict[str, str]], **fields: Any) -> list[float]:
        response = self.client.post("/v1/rewards", json={"inputs": inputs, "top_k": 0, **fields})
        assert response.status_code == 200, response.text
        return [row["reward"] for row in response.json()["data"]]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert self.process.poll() is None
            try:
                if self.client.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError("not ready")


@contextmanager
def serving(
    port: int, environment: Mapping[str, str], *options: str, worker_pattern: str
) -> Iterator[ServerGroup]:
    """Run `sparserm serve` with options until the block ends; none of its processes may be left then."""
    environment = {**environment, "SPARSERM_API_KEYS": KEYS, "SPARSERM_MAX_BATCH_TOKENS": "1024"}
    command = [*PROGRAM, "serve", "--port", str(port), *options]
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, text=True) as gateway,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=ADMIN) as client,
    ):
        group = ServerGroup(gateway, client, worker_pattern)
        try:
            group.wait_until_ready()
            yield group
        finally:
            children = psutil.Process(gateway.pid).children(recursive=True) if gateway.poll() is None else []
            gateway.terminate()
            gateway.wait(60)
            _, alive = psutil.wait_procs(children, 30)
            for process in alive:
                process.kill()
    assert not alive


def make_inputs(items: list[Item]) -> list[dict[str, str]]:
    """Return items as the `inputs` of a request."""
    return [{"prompt": item.messages[0].content, "response": item.response} for item in items]
