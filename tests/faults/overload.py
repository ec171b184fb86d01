"""Loads a server with twice its peak rate: python -m tests.faults.overload [SECONDS].

A closed loop measures the peak rate; then an open loop sends requests at random times at twice that rate,
whether or not earlier ones were answered; then the peak is measured again, because the speed of a machine can
change. Latency counts from the scheduled send time.
"""

import asyncio
import os
import random
import ssl
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.server import ServerProcess, run_sparserm

WORDS = Path(__file__).read_text().split()
PEAK_MEASUREMENT_S = 20.0
CLIENTS = 32
# The latency objective, which every request also sends as its timeout.
LATENCY_GOAL_S = 3.0
# The server has recovered when a single request takes less than this.
RECOVERED_LATENCY_S = 0.5


@dataclass
class Outcomes:
    """The latencies of a run's requests by outcome."""

    good: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)

    def record(self, result: httpx.Response | Exception, seconds: float) -> None:
        """Record one request."""
        if isinstance(result, Exception):
            self.other.append(type(result).__name__)
        elif result.status_code == 200:
            (self.good if seconds <= LATENCY_GOAL_S else self.late).append(seconds)
        elif result.status_code == 429:
            self.refused.append(seconds)
            self.retry_after.append(int(result.headers["retry-after"]))
        else:
            self.other.append(str(result.status_code))


async def main(seconds: float) -> None:
    """Print how many requests were sent, answered and refused."""
    with run_sparserm() as server:
        async with httpx.AsyncClient(
            base_url=server.url,
            timeout=60,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=2000, max_keepalive_connections=2000),
        ) as http:
            peak_before = await _measure_peak(http)
            print(
                f"load average {os.getloadavg()[0]:.2f}; peak {peak_before:.1f} requests/s, {CLIENTS} clients"
            )
            memory_before, printing = server.resident_mib, asyncio.create_task(_print_memory(server))
            outcomes, recovery_s = await _run_open_loop(http, 2 * peak_before, seconds)
            printing.cancel()
            memory_after, peak_after = server.resident_mib, await _measure_peak(http)
            print(f"load average {os.getloadavg()[0]:.2f}; peak {peak_after:.1f} requests/s")
            peak = (peak_before + peak_after) / 2
            _print_report(outcomes, peak, seconds, recovery_s, (memory_before, memory_after))


async def _measure_peak(http: httpx.AsyncClient) -> float:
    """Requests per second when each client sends its next request after the response."""
    rng, done, deadline = random.Random(0), 0, 0.0

    async def run_client() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            (await _send(http, rng, timeout_s=60)).raise_for_status()
            done += 1

    for duration in (PEAK_MEASUREMENT_S / 4, PEAK_MEASUREMENT_S):
        done, deadline = 0, time.perf_counter() + duration
        started = time.perf_counter()
        await asyncio.gather(*(run_client() for _ in range(CLIENTS)))
    return done / (time.perf_counter() - started)


async def _run_open_loop(http: httpx.AsyncClient, rate: float, seconds: float) -> tuple[Outcomes, float]:
    rng, outcomes, tasks = random.Random(1), Outcomes(), set[asyncio.Task[None]]()
    started = time.perf_counter()
    scheduled = started

    async def send_and_record(moment: float) -> None:
        try:
            result: httpx.Response | Exception = await _send(http, rng)
        except httpx.HTTPError as error:
            result = error
        outcomes.record(result, time.perf_counter() - moment)

    while (scheduled := scheduled + rng.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
        tasks.add(asyncio.create_task(send_and_record(scheduled)))
    recovery_s = await _wait_until_recovered(http)
    await asyncio.gather(*tasks)
    return outcomes, recovery_s


async def _wait_until_recovered(http: httpx.AsyncClient) -> float:
    """Seconds from the end of the load until a single request is fast again."""
    rng, load_ended = random.Random(2), time.perf_counter()
    while True:
        sent = time.perf_counter()
        response = await _send(http, rng)
        if response.status_code == 200 and time.perf_counter() - sent < RECOVERED_LATENCY_S:
            return sent - load_ended
        await asyncio.sleep(0.05)


async def _send(
    http: httpx.AsyncClient, rng: random.Random, timeout_s: float = LATENCY_GOAL_S
) -> httpx.Response:
    prompt, response = (" ".join(rng.choices(WORDS, k=rng.randint(8, 24))) for _ in range(2))
    body = {"inputs": [{"prompt": prompt, "response": response}]}
    return await http.post("/v1/rewards", json=body, headers={"X-SparseRM-Timeout": f"{timeout_s}"})


async def _print_memory(server: ServerProcess) -> None:
    while True:
        await asyncio.sleep(10)
        print(f"  {server.resident_mib:.0f} MiB", flush=True)


def _print_report(
    outcomes: Outcomes, peak: float, seconds: float, recovery_s: float, memory: tuple[float, float]
) -> None:
    good = len(outcomes.good)
    sent = good + len(outcomes.late) + len(outcomes.refused) + len(outcomes.other)
    print(f"sent {sent} in {seconds:.0f} s ({sent / seconds / peak:.2f} of the peak)")
    print(f"answered within {LATENCY_GOAL_S} s: {good}, {good / seconds / peak:.2f} of the peak")
    print(f"answered later: {len(outcomes.late)}; refused: {len(outcomes.refused)}")
    print(f"other outcomes: {dict(Counter(outcomes.other)) or 'none'}")
    for name, latencies in (("answers", outcomes.good + outcomes.late), ("refusals", outcomes.refused)):
        if len(latencies) > 1:
            cuts = statistics.quantiles(latencies, n=100)
            print(f"{name}: p50 {cuts[49] * 1e3:.0f} ms, p90 {cuts[89] * 1e3:.0f}, p99 {cuts[98] * 1e3:.0f}")
    retry_after = outcomes.retry_after
    print(f"retry-after from {min(retry_after, default=0)} to {max(retry_after, default=0)} s")
    print(f"recovery {recovery_s:.2f} s; memory {memory[0]:.0f} MiB before, {memory[1]:.0f} after")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0))
