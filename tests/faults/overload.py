"""Twice as much as can be done: python -m tests.faults.overload [SECONDS].

First the peak, asked for in a closed loop; then an open loop at twice that rate, requests at random moments
whether or not earlier ones were answered; then the peak once more, as machines change their pace meanwhile.
Latency counts from the moment a request was meant to go out.
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
PEAK_S, VOICES, GOAL_S, RECOVERED_S = 20.0, 32, 3.0, 0.5


@dataclass
class Seen:
    """What became of the requests of one run."""

    good: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)

    def note(self, answer: httpx.Response | Exception, seconds: float) -> None:
        """One answer."""
        if isinstance(answer, Exception):
            self.other.append(type(answer).__name__)
        elif answer.status_code == 200:
            (self.good if seconds <= GOAL_S else self.late).append(seconds)
        elif answer.status_code == 429:
            self.refused.append(seconds)
            self.retry_after.append(int(answer.headers["retry-after"]))
        else:
            self.other.append(str(answer.status_code))


async def main(seconds: float) -> None:
    """Print what was asked, answered and refused."""
    with run_sparserm() as server:
        async with httpx.AsyncClient(
            base_url=server.url,
            timeout=60,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=2000, max_keepalive_connections=2000),
        ) as http:
            peak = await _peak(http)
            print(f"load average {os.getloadavg()[0]:.2f}; peak {peak:.1f} requests/s, {VOICES} voices")
            before, memory = server.resident_mib, asyncio.create_task(_memory(server))
            seen, recovery = await _open_loop(http, 2 * peak, seconds)
            memory.cancel()
            after, again = server.resident_mib, await _peak(http)
            print(f"load average {os.getloadavg()[0]:.2f}; peak {again:.1f} requests/s")
            _report(seen, (peak + again) / 2, seconds, recovery, (before, after))


async def _peak(http: httpx.AsyncClient) -> float:
    """Requests a second when each voice asks again as soon as it has heard."""
    rng, done, until = random.Random(0), 0, 0.0

    async def voice() -> None:
        nonlocal done
        while time.perf_counter() < until:
            (await _ask(http, rng, timeout_s=60)).raise_for_status()
            done += 1

    for length in (PEAK_S / 4, PEAK_S):
        done, until = 0, time.perf_counter() + length
        started = time.perf_counter()
        await asyncio.gather(*(voice() for _ in range(VOICES)))
    return done / (time.perf_counter() - started)


async def _open_loop(http: httpx.AsyncClient, rate: float, seconds: float) -> tuple[Seen, float]:
    rng, seen, asked = random.Random(1), Seen(), set[asyncio.Task[None]]()
    started = time.perf_counter()
    meant = started

    async def one(moment: float) -> None:
        try:
            answer: httpx.Response | Exception = await _ask(http, rng)
        except httpx.HTTPError as error:
            answer = error
        seen.note(answer, time.perf_counter() - moment)

    while (meant := meant + rng.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, meant - time.perf_counter()))
        asked.add(asyncio.create_task(one(meant)))
    recovery = await _recovery(http)
    await asyncio.gather(*asked)
    return seen, recovery


async def _recovery(http: httpx.AsyncClient) -> float:
    """Seconds from the end of the load until a single request is as quick as it should be."""
    rng, started = random.Random(2), time.perf_counter()
    while True:
        begun = time.perf_counter()
        answer = await _ask(http, rng)
        if answer.status_code == 200 and time.perf_counter() - begun < RECOVERED_S:
            return begun - started
        await asyncio.sleep(0.05)


async def _ask(http: httpx.AsyncClient, rng: random.Random, timeout_s: float = GOAL_S) -> httpx.Response:
    prompt, response = (" ".join(rng.choices(WORDS, k=rng.randint(8, 24))) for _ in range(2))
    body = {"inputs": [{"prompt": prompt, "response": response}]}
    return await http.post("/v1/rewards", json=body, headers={"X-SparseRM-Timeout": f"{timeout_s}"})


async def _memory(server: ServerProcess) -> None:
    while True:
        await asyncio.sleep(10)
        print(f"  {server.resident_mib:.0f} MiB", flush=True)


def _report(seen: Seen, peak: float, seconds: float, recovery: float, memory: tuple[float, float]) -> None:
    asked = len(seen.good) + len(seen.late) + len(seen.refused) + len(seen.other)
    print(f"asked {asked} in {seconds:.0f} s ({asked / seconds / peak:.2f} of the peak)")
    print(f"answered within {GOAL_S} s: {len(seen.good)}, {len(seen.good) / seconds / peak:.2f} of the peak")
    print(f"answered later: {len(seen.late)}; refused: {len(seen.refused)}")
    print(f"anything else: {dict(Counter(seen.other)) or 'nothing'}")
    for name, times in (("answers", seen.good + seen.late), ("refusals", seen.refused)):
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            print(f"{name}: p50 {cuts[49] * 1e3:.0f} ms, p90 {cuts[89] * 1e3:.0f}, p99 {cuts[98] * 1e3:.0f}")
    print(f"retry-after from {min(seen.retry_after, default=0)} to {max(seen.retry_after, default=0)} s")
    print(f"recovery {recovery:.2f} s; memory {memory[0]:.0f} MiB before, {memory[1]:.0f} after")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0))
