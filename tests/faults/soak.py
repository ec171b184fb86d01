"""A soak test with mixed traffic: python -m tests.faults.soak [MINUTES].

Random dialects and request sizes, clients that disconnect, reloads and invalid input, against `sparserm
serve` with the shipped models. Every reward is compared with the one computed in this process beforehand.
"""

import asyncio
import gc
import os
import random
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.reward import loading
from app.scores import ScoredItem
from app.settings import Settings
from app.types import Explain, Item, Message, ScoreJob, ScoreOptions
from benchmarks.server import ServerProcess, parse_samples, run_sparserm

WORDS = sorted({word for word in Path(__file__).read_text().split() if word.isalpha()})
ITEMS = 160
CLIENTS = 8
TOLERANCE = 1e-4
ADMIN_HEADERS = {"X-API-Key": "boss"}
SoakItem = tuple[str, str]
ExpectedReward = tuple[SoakItem, float]


@dataclass
class SoakLog:
    """The number of correct rewards, every failure, counts of events, and memory samples."""

    correct: int = 0
    failures: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    memory_mib: list[float] = field(default_factory=list)


def render_chatml(item: SoakItem) -> str:
    """The conversation as a policy's chat template renders it."""
    prompt, response = item
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"


def native_input(item: SoakItem) -> dict[str, str]:
    """The conversation as an input of the native API."""
    return {"prompt": item[0], "response": item[1]}


Dialect = tuple[str, Callable[[Sequence[SoakItem]], dict[str, Any]], Callable[[Any], list[float]]]
DIALECTS: list[Dialect] = [
    ("/v1/rewards", lambda items: {"inputs": [native_input(item) for item in items]},
     lambda answer: [row["reward"] for row in answer["data"]]),
    ("/v1/rewards",
     lambda items: {"inputs": [native_input(item) for item in items], "explain": "tokens", "top_k": 20},
     lambda answer: [row["reward"] for row in answer["data"]]),
    ("/get_reward", lambda items: {"query": [render_chatml(item) for item in items]},
     lambda answer: answer["rewards"]),
    ("/v1/score/evaluation",
     lambda items: {"model": "x", "messages": [render_chatml(item) for item in items]},
     lambda answer: answer["scores"]),
    ("/slime", lambda items: {"prompt": items[0][0], "response": items[0][1], "label": None},
     lambda answer: [answer]),
    ("/classify",
     lambda items: {"input": [render_chatml(item) for item in items], "use_activation": False},
     lambda answer: [row["probs"][0] for row in answer["data"]]),
    ("/pooling", lambda items: {"input": [render_chatml(item) for item in items]},
     lambda answer: [row["data"][0] for row in answer["data"]]),
    ("/predict", lambda items: {"inputs": [list(item) for item in items], "raw_scores": True},
     lambda answer: [row[0]["score"] for row in answer]),
]  # fmt: skip
INVALID_REQUESTS: list[tuple[str, bytes]] = [
    ("/v1/rewards", b"{"),
    ("/v1/rewards", b'{"inputs": []}'),
    ("/v1/rewards", b'{"inputs": [{"prompt": "a", "response": ""}]}'),
    ("/get_reward", b'{"query": 3}'),
    ("/slime", b'{"prompt": [], "response": "x"}'),
    ("/predict", b'{"inputs": []}'),
    ("/m/nobody/get_reward", b'{"query": ["a"]}'),
]


async def main(minutes: float) -> None:
    """Print how many rewards were correct, and every failure."""
    model, expected = _compute_expected_rewards()
    log, deadline = SoakLog(), time.monotonic() + 60 * minutes
    with run_sparserm(SPARSERM_API_KEYS="worker,admin=boss", SPARSERM_DEFAULT_MODEL=model) as server:
        async with httpx.AsyncClient(
            base_url=f"{server.url}/k/worker", timeout=120, verify=ssl.create_default_context()
        ) as http:
            clients = [_run_client(http, expected, random.Random(n), log, deadline) for n in range(CLIENTS)]
            reloads, memory = (
                _reload_models(http, model, log, deadline),
                _sample_memory(server, log, deadline),
            )
            await asyncio.gather(*clients, reloads, memory)
            statuses = Counter[str]()
            metrics = (await http.get(f"{server.url}/metrics", headers=ADMIN_HEADERS)).text
            for sample in parse_samples(metrics, "sparserm_requests_total"):
                statuses[sample.labels["code"]] += int(sample.value)
            tokens_left = server.metric("sparserm_backlog_tokens", "boss")
    _print_report(log, statuses, tokens_left, minutes)


def _compute_expected_rewards() -> tuple[str, list[ExpectedReward]]:
    """Random items and their rewards, computed in this process; the engine is freed afterwards."""
    engine, rng = loading.load_engine(Settings(), lambda *_: None), random.Random(5)
    pairs = [
        (
            " ".join(rng.choices(WORDS, k=rng.randint(2, 30))),
            " ".join(rng.choices(WORDS, k=rng.randint(1, 60))),
        )
        for _ in range(ITEMS)
    ]
    model = next(iter(engine.models))
    items = [Item((Message("user", prompt),), response) for prompt, response in pairs]
    jobs = [ScoreJob(item, ScoreOptions((model,), Explain.NONE)) for item in engine.encode(items)]
    results = [result for job in jobs for result in engine.score([job]) if isinstance(result, ScoredItem)]
    expected = [(pair, result.scores[0].reward) for pair, result in zip(pairs, results, strict=True)]
    del engine
    gc.collect()
    return model, expected


async def _run_client(
    http: httpx.AsyncClient,
    expected: list[ExpectedReward],
    rng: random.Random,
    log: SoakLog,
    deadline: float,
) -> None:
    while time.monotonic() < deadline:
        choice = rng.random()
        if choice < 0.05:
            await _send_invalid_request(http, rng, log)
        elif choice < 0.1:
            await _disconnect_early(http, expected, rng, log)
        else:
            await _check_rewards(http, expected, rng, log)


async def _check_rewards(
    http: httpx.AsyncClient, expected: list[ExpectedReward], rng: random.Random, log: SoakLog
) -> None:
    path, build_body, read_rewards = rng.choice(DIALECTS)
    sample = rng.sample(expected, rng.choice([1, 1, 1, 2, 4, 8, 32]))
    response = await http.post(path, json=build_body([item for item, _ in sample]))
    if response.status_code != 200:
        log.failures.append(f"{path}: {response.status_code} {response.text[:200]}")
        return
    rewards = read_rewards(response.json())
    for (_, expected_reward), reward in zip(sample, rewards, strict=False):
        if abs(expected_reward - reward) <= TOLERANCE:
            log.correct += 1
        else:
            log.failures.append(f"{path}: expected {expected_reward}, got {reward}")
    log.events[path] += 1


async def _send_invalid_request(http: httpx.AsyncClient, rng: random.Random, log: SoakLog) -> None:
    path, body = rng.choice(INVALID_REQUESTS)
    response = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    log.events["invalid request"] += 1
    if not 400 <= response.status_code < 500:
        log.failures.append(f"{path} with {body!r}: {response.status_code}")


async def _disconnect_early(
    http: httpx.AsyncClient, expected: list[ExpectedReward], rng: random.Random, log: SoakLog
) -> None:
    inputs = [native_input(item) for item, _ in rng.sample(expected, rng.randint(1, 64))]
    try:
        await http.post("/v1/rewards", json={"inputs": inputs}, timeout=rng.uniform(0.01, 0.3))
        log.events["answered before the disconnect"] += 1
    except httpx.TimeoutException:
        log.events["disconnected"] += 1


async def _reload_models(http: httpx.AsyncClient, model: str, log: SoakLog, deadline: float) -> None:
    root = str(http.base_url).partition("/k/")[0]
    while time.monotonic() < deadline - 10:
        await asyncio.sleep(10)
        response = await http.post(f"{root}/v1/models/{model}/reload", headers=ADMIN_HEADERS)
        log.events["reload"] += 1
        if response.status_code != 200:
            log.failures.append(f"reload: {response.status_code} {response.text[:200]}")


async def _sample_memory(server: ServerProcess, log: SoakLog, deadline: float) -> None:
    while time.monotonic() < deadline:
        await asyncio.sleep(min(10.0, max(0.0, deadline - time.monotonic())))
        log.memory_mib.append(server.resident_mib)
        if len(log.memory_mib) % 6 == 0:
            minutes = len(log.memory_mib) / 6
            print(f"  {minutes:.0f} min: {log.correct} correct, {log.memory_mib[-1]:.0f} MiB", flush=True)


def _print_report(log: SoakLog, statuses: Counter[str], tokens_left: float, minutes: float) -> None:
    tenth = max(len(log.memory_mib) // 10, 1)
    early = statistics.mean(log.memory_mib[tenth : 2 * tenth])
    late = statistics.mean(log.memory_mib[-tenth:])
    print(f"{minutes:.0f} min, load average {os.getloadavg()[0]:.2f}")
    print(f"{log.correct} rewards correct, {len(log.failures)} failures: {log.failures[:5]}")
    print(f"responses by status: {dict(statuses)}; tokens still reserved: {tokens_left:.0f}")
    print(f"events: {dict(log.events)}")
    print(f"memory: {early:.0f} MiB in the second tenth, {late:.0f} in the last ({late / early - 1:+.1%})")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
