"""make bench, second part: 300 requests of one sample, each on its own connection, against one of 300.

The server is a process of its own, started for this on a free port of the loopback.
"""

import asyncio
import os
import random
import ssl
import statistics
import time
from pathlib import Path

import httpx

from benchmarks.server import serving

SAMPLES, ROUNDS = 300, 2
WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print the throughput of both and their ratio."""
    with serving() as server:
        url = server.url
        times: dict[str, list[float]] = {"one by one": [], "together": []}
        batches = []
        for round_ in range(ROUNDS):
            queries = _queries(random.Random(round_))
            before = server.metric("sparserm_batch_items_count")
            started = time.perf_counter()
            asyncio.run(_storm(url, queries))
            times["one by one"].append(time.perf_counter() - started)
            batches.append(SAMPLES / (server.metric("sparserm_batch_items_count") - before))
            started = time.perf_counter()
            _post(url, _queries(random.Random(round_)))
            times["together"].append(time.perf_counter() - started)
    print(f"\n{SAMPLES} samples at once, each its own connection; load average {os.getloadavg()[0]:.2f}")
    for name, seconds in times.items():
        print(f"  {name:<12} {SAMPLES / statistics.median(seconds):6.1f} samples/s")
    ratio = statistics.median(times["together"]) / statistics.median(times["one by one"])
    print(f"  ratio {ratio:.2f}; mean batch {statistics.median(batches):.1f} samples")


async def _storm(url: str, queries: list[str]) -> None:
    """A connection each; the certificates, which nobody needs here, are set up once and not 300 times."""
    plain = ssl.create_default_context()

    async def ask(query: str) -> None:
        async with httpx.AsyncClient(timeout=180, verify=plain) as client:
            answer = await client.post(f"{url}/get_reward", json={"query": [query]})
            answer.raise_for_status()

    await asyncio.gather(*(ask(query) for query in queries))


def _post(url: str, queries: list[str]) -> None:
    httpx.post(f"{url}/get_reward", json={"query": queries}, timeout=180).raise_for_status()


def _queries(rng: random.Random) -> list[str]:
    """Rendered conversations that share no words of their prompts."""
    head = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
    asked = (" ".join(rng.choices(WORDS, k=8)) for _ in range(SAMPLES))
    return [head.format(one, " ".join(rng.choices(WORDS, k=rng.randint(6, 20)))) for one in asked]


if __name__ == "__main__":
    main()
