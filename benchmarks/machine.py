"""Describes the machine, measures its current matrix-product peak, and measures who uses it.

A measurement is interpreted together with the peak that the machine reached just before and just after it.
"""

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Self

import psutil
import torch
from torch import Tensor

from app.backbone.linear import PackedLinear

REPEATS = 20
CUBE_SIZE = 1024
ROWS = 1024
# The machine was steady if its peak changed by at most this share and other processes used at most that
# share.
MAX_PEAK_CHANGE = 0.05
MAX_OTHERS_SHARE = 0.1
REPORTED_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
MIB = 2**20
MEMORY_SAMPLE_S = 2.0


def describe_machine() -> dict[str, str]:
    """The facts that measurements depend on: processor, cores, memory, versions."""
    info = Path("/proc/cpuinfo").read_text()
    pairs = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in pairs.items()}
    flags = set(cpu.get("flags", "").split())
    return {
        "processor": cpu.get("model name", platform.machine()),
        "cores": str(count_cores()),
        "instructions": " ".join(flag for flag in REPORTED_CPU_FLAGS if flag in flags),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def count_cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def measure_peak_gflops(shapes: Iterable[tuple[int, int]]) -> float:
    """GFLOP/s of float32 matrix products: the best over several shapes, with and without packed weights."""
    return max(
        _gflops(*shape)
        for shape in [(CUBE_SIZE, CUBE_SIZE, CUBE_SIZE), *((ROWS, *shape) for shape in shapes)]
    )


def is_steady(before: float, after: float, others: float) -> bool:
    """Whether the peak stayed the same and other processes used little of the machine."""
    return abs(before - after) <= MAX_PEAK_CHANGE * max(before, after) and others <= MAX_OTHERS_SHARE


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Core-seconds since the machine started: of the servers, of this process, and of all processes."""

    at: float
    server: float
    client: float
    busy: float

    def shares_since(self, before: "CpuUse") -> dict[str, float]:
        """Shares of the machine since `before`; `others` is everything but the servers and this process."""
        capacity = (self.at - before.at) * count_cores()
        server, client = self.server - before.server, self.client - before.client
        others = max(0.0, self.busy - before.busy - server - client)
        return {"server": server / capacity, "client": client / capacity, "others": others / capacity}


def measure_cpu_use(pids: Sequence[int]) -> CpuUse:
    """The use so far; `pids` are the servers, and their child processes are included."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    client = psutil.Process().cpu_times()
    server = _sum_over_processes(pids, lambda process: sum(process.cpu_times()[:2]))
    return CpuUse(time.perf_counter(), server, client.user + client.system, busy)


class ResourceMonitor(AbstractAsyncContextManager["ResourceMonitor"]):
    """Measures the processor shares and the memory of servers while its block runs."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    async def __aenter__(self) -> Self:
        """Start measuring."""
        self.initial_mib = self.max_mib = resident_mib(self._pids)
        self._before = measure_cpu_use(self._pids)
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop measuring."""
        self._sampling.cancel()
        self.shares = measure_cpu_use(self._pids).shares_since(self._before)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_SAMPLE_S)
            self.max_mib = max(self.max_mib, resident_mib(self._pids))


def resident_mib(pids: Sequence[int]) -> float:
    """Memory of servers and their child processes; shared memory counts once (PSS)."""
    return _sum_over_processes(pids, lambda process: process.memory_full_info().pss) / MIB


def _sum_over_processes(pids: Sequence[int], measure: Callable[[psutil.Process], float]) -> float:
    """Sum over processes and all their children; a child that has just ended counts as zero."""
    total = 0.0
    for root in map(psutil.Process, pids):
        total += measure(root)
        for child in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += measure(child)
    return total


def _gflops(rows: int, inner: int, columns: int) -> float:
    a, b = torch.randn(rows, inner), torch.randn(columns, inner)
    works = (lambda: torch.mm(a, b.T), partial(PackedLinear(b), a))
    seconds = min(statistics.median(_timed(work) for _ in range(REPEATS)) for work in works)
    return 2 * rows * inner * columns / seconds / 1e9


def _timed(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
