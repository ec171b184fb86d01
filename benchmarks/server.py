"""`sparserm serve` on a free port of the loopback, for those who measure it from outside."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PROGRAM = [sys.executable, "-c", "from app.cli import app; app()", "serve", "--port"]


@dataclass(frozen=True)
class Served:
    """A server of its own process."""

    url: str
    pid: int

    def metric(self, name: str, key: str = "") -> float:
        """The sum of a series over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers={"X-API-Key": key}).text
        return sum(sample.value for sample in samples(text, name))

    @property
    def resident_mib(self) -> float:
        """Memory it holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def samples(text: str, name: str) -> list[Sample]:
    """What /metrics tells of a series, one for each of its labels."""
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


@contextmanager
def serving(**environment: str) -> Iterator[Served]:
    """Start it, wait until it is ready, end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [*PROGRAM, port],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Served(f"http://127.0.0.1:{port}", process.pid)
    try:
        _until_ready(server.url, process)
        yield server
    finally:
        process.terminate()
        process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/ready").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the server ended with {process.returncode}")
