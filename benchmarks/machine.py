"""What the machine is, what it can do at the moment, and who uses it.

A figure counts only beside the peak of matrix products that the machine reached just before and just after.
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

REPEATS, CUBE, ROWS = 20, 1024, 1024
STEADY, OTHERS = 0.05, 0.1
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
BYTES, SAMPLE_S = 2**20, 2.0


def describe_machine() -> dict[str, str]:
    """What figures depend on."""
    info = Path("/proc/cpuinfo").read_text()
    named = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in named.items()}
    flags = set(known.get("flags", "").split())
    return {
        "processor": known.get("model name", platform.machine()),
        "cores": str(count_cores()),
        "instructions": " ".join(flag for flag in FLAGS if flag in flags),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def measure_peak_gflops(shapes: Iterable[tuple[int, int]]) -> float:
    """GFLOP/s of float32 matrix products, packed or not: best median of a cube and of the model's shapes."""
    return max(_gflops(*shape) for shape in [(CUBE, CUBE, CUBE), *((ROWS, *shape) for shape in shapes)])


def is_steady(before: float, after: float, others: float) -> bool:
    """Whether the machine was as fast after as before, and nobody else used much of it."""
    return abs(before - after) <= STEADY * max(before, after) and others <= OTHERS


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Seconds of all cores since the machine started: of servers, of this process, of everybody."""

    at: float
    server: float
    client: float
    busy: float

    def shares_since(self, before: "CpuUse") -> dict[str, float]:
        """Each one's share of the machine; `others` are those who have no part in it."""
        whole = (self.at - before.at) * count_cores()
        server, client = self.server - before.server, self.client - before.client
        others = max(0.0, self.busy - before.busy - server - client)
        return {"server": server / whole, "client": client / whole, "others": others / whole}


def measure_cpu_use(pids: Sequence[int]) -> CpuUse:
    """What has been used so far; `pids` are the servers', whose children count as they do."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    client = psutil.Process().cpu_times()
    served = _sum(pids, lambda one: sum(one.cpu_times()[:2]))
    return CpuUse(time.perf_counter(), served, client.user + client.system, busy)


class ResourceMonitor(AbstractAsyncContextManager["ResourceMonitor"]):
    """What servers use and hold from its beginning to its end."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    async def __aenter__(self) -> Self:
        """Begin."""
        self.initial_mib = self.max_mib = resident_mib(self._pids)
        self._before = measure_cpu_use(self._pids)
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""
        self._sampling.cancel()
        self.shares = measure_cpu_use(self._pids).shares_since(self._before)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.max_mib = max(self.max_mib, resident_mib(self._pids))


def resident_mib(pids: Sequence[int]) -> float:
    """Memory held by servers and their children; what they share counts once."""
    return _sum(pids, lambda one: one.memory_full_info().pss) / BYTES


def _sum(pids: Sequence[int], of: Callable[[psutil.Process], float]) -> float:
    """Over processes and all their children; a child that has just ended counts for nothing."""
    total = 0.0
    for root in map(psutil.Process, pids):
        total += of(root)
        for child in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += of(child)
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
