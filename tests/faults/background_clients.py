"""Background clients: each knows the rewards it must get, and records every answer that differs."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from sparserm_client import Client, Sample

from app.reward.engine import Engine
from app.types import ScoreOptions
from tests.support import tiny

TOLERANCE = 1e-5
ExpectedRewards = Sequence[tuple[dict[str, str], float]]


def compute_expected_rewards(engine: Engine, count: int = 200) -> ExpectedRewards:
    """Random inputs and the rewards that an engine in this process gives them."""
    items = tiny.random_items(count, seed=7)
    model = next(iter(engine.models))
    rewards = [scores[0].reward for scores in tiny.score_items(engine, items, ScoreOptions((model,)))]
    inputs = [{"prompt": item.messages[0].content, "response": item.response} for item in items]
    return list(zip(inputs, rewards, strict=True))


@dataclass
class ClientLog:
    """What the background clients received so far: the number of correct rewards, and every failure."""

    correct: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record_rewards(self, expected: Sequence[float], rewards: Sequence[float]) -> None:
        """Compare the rewards of one answer with the expected ones."""
        wrong = [
            f"expected {a}, got {b}"
            for a, b in zip(expected, rewards, strict=True)
            if not abs(a - b) <= TOLERANCE
        ]
        with self.lock:
            self.correct += len(expected) - len(wrong)
            self.failures += wrong

    def record_failure(self, reason: str) -> None:
        """Record a request without rewards."""
        with self.lock:
            self.failures.append(reason)


@contextmanager
def background_clients(
    url: str, inputs: ExpectedRewards, *, count: int = 4, retry: bool = False
) -> Iterator[ClientLog]:
    """Run clients that send requests until the block ends; with `retry` they wait while it is down."""
    log, stop = ClientLog(), threading.Event()
    run_client = _run_retrying_client if retry else _run_strict_client
    threads = [
        threading.Thread(target=run_client, args=(url, inputs, random.Random(seed), log, stop))
        for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield log
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _run_strict_client(
    url: str, inputs: ExpectedRewards, rng: random.Random, log: ClientLog, stop: threading.Event
) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop.is_set():
            sample = rng.sample(inputs, rng.randint(1, 6))
            try:
                response = http.post("/v1/rewards", json={"inputs": [item for item, _ in sample], "top_k": 0})
            except httpx.TransportError as error:
                log.record_failure(f"{type(error).__name__}: {error}")
                continue
            if response.status_code != 200:
                log.record_failure(f"{response.status_code} {response.text[:200]}")
                continue
            rewards = [row.get("reward", float("nan")) for row in response.json()["data"]]
            log.record_rewards([reward for _, reward in sample], rewards)


def _run_retrying_client(
    url: str, inputs: ExpectedRewards, rng: random.Random, log: ClientLog, stop: threading.Event
) -> None:
    with Client(url, retry_for_s=600) as client:
        while not stop.is_set():
            sample = rng.sample(inputs, rng.randint(1, 6))
            results = client.rewards([Sample(item["prompt"], item["response"]) for item, _ in sample])
            log.record_rewards([reward for _, reward in sample], [result.reward for result in results])
