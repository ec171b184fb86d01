"""Servers as processes of their own on the loopback, for those who measure them from outside."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SPARSERM_COMMAND = [sys.executable, "-c", "from app.cli import app; app()", "serve", "--port"]
START_S, GRACE_S = 600.0, 60.0


@dataclass(frozen=True)
class ServerProcess:
    """A server of its own process, and how long it took to be ready."""

    url: str
    pid: int
    ready_s: float

    def metric(self, name: str, key: str = "") -> float:
        """The sum of a series over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers={"X-API-Key": key}).text
        return sum(sample.value for sample in parse_samples(text, name))

    @property
    def resident_mib(self) -> float:
        """Memory it holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def parse_samples(text: str, name: str) -> list[Sample]:
    """What /metrics tells of a series, one for each of its labels."""
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


def find_free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def run_sparserm(**environment: str) -> Iterator[ServerProcess]:
    """`sparserm serve`, for as long as it is needed."""
    port = find_free_port()
    with run_server(
        [*SPARSERM_COMMAND, str(port)], {**os.environ, **environment}, port=port, ready="/ready"
    ) as server:
        yield server


@contextmanager
def run_server(
    args: Sequence[str],
    env: Mapping[str, str],
    *,
    port: int,
    ready: str,
    log: Path = Path(os.devnull),
) -> Iterator[ServerProcess]:
    """Start a server, wait until it is ready, end it and whatever it started."""
    began = time.perf_counter()
    with log.open("ab") as out:
        process = subprocess.Popen(
            args, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(url + ready, process, began + START_S)
        yield ServerProcess(url, process.pid, time.perf_counter() - began)
    finally:
        _end(process)


def _until_ready(url: str, process: subprocess.Popen[bytes], until: float) -> None:
    while process.poll() is None:
        if time.perf_counter() > until:
            raise RuntimeError(f"no answer at {url} after {START_S:.0f} s")
        with suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server ended with {process.returncode} before it was ready")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait, then end what is left of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
