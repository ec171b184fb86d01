"""Starts servers as separate processes on the loopback interface, for benchmarks and fault tests."""

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
MAX_START_S = 600.0
STOP_GRACE_S = 60.0


@dataclass(frozen=True)
class ServerProcess:
    """A running server: its URL, its process, and the seconds it took to become ready."""

    url: str
    pid: int
    ready_s: float

    def metric(self, name: str, key: str = "") -> float:
        """The sum of a metric's samples over all labels."""
        text = httpx.get(f"{self.url}/metrics", headers={"X-API-Key": key}).text
        return sum(sample.value for sample in parse_samples(text, name))

    @property
    def resident_mib(self) -> float:
        """The resident memory of the process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def parse_samples(text: str, name: str) -> list[Sample]:
    """The samples of one metric in the text of /metrics, one per label set."""
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


def find_free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def run_sparserm(**environment: str) -> Iterator[ServerProcess]:
    """Run `sparserm serve` with extra environment variables until the block ends."""
    port = find_free_port()
    command = [*SPARSERM_COMMAND, str(port)]
    with run_server_process(command, {**os.environ, **environment}, port=port, ready_path="/ready") as server:
        yield server


@contextmanager
def run_server_process(
    args: Sequence[str],
    env: Mapping[str, str],
    *,
    port: int,
    ready_path: str,
    log: Path = Path(os.devnull),
) -> Iterator[ServerProcess]:
    """Start a server, wait until it is ready, and stop it with all its child processes at the end."""
    started = time.perf_counter()
    with log.open("ab") as out:
        process = subprocess.Popen(
            args, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url + ready_path, process, started + MAX_START_S)
        yield ServerProcess(url, process.pid, time.perf_counter() - started)
    finally:
        _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    while process.poll() is None:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"no answer at {url} after {MAX_START_S:.0f} s")
        with suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server exited with {process.returncode} before it was ready")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server, wait for it, then kill whatever is left of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
