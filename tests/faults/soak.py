"""A long mixed day, made short: python -m tests.faults.soak [MINUTES].

Dialects and sizes at random, callers that hang up, reloads and bad input, against `sparserm serve` with the
shipped models. Every reward is compared with the one computed beforehand in this process.
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
from app.settings import Settings
from app.types import Explain, Item, Message, ScoredItem, ScoreJob, ScoreOptions
from benchmarks.server import ServerProcess, parse_samples, run_sparserm

WORDS = sorted({word for word in Path(__file__).read_text().split() if word.isalpha()})
ITEMS, VOICES, TOLERANCE = 160, 8, 1e-4
ADMIN = {"X-API-Key": "boss"}
SoakItem = tuple[str, str]


@dataclass
class Told:
    """What was right, what was wrong, and what else happened."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)


def rendered(item: SoakItem) -> str:
    """A conversation as a policy's template leaves it."""
    asked, said = item
    return f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"


def native(item: SoakItem) -> dict[str, str]:
    """The same for the native API."""
    return {"prompt": item[0], "response": item[1]}


Dialect = tuple[str, Callable[[Sequence[SoakItem]], dict[str, Any]], Callable[[Any], list[float]]]
DIALECTS: list[Dialect] = [
    ("/v1/rewards", lambda some: {"inputs": [native(one) for one in some]},
     lambda a: [row["reward"] for row in a["data"]]),
    ("/v1/rewards", lambda some: {"inputs": [native(one) for one in some], "explain": "tokens", "top_k": 20},
     lambda a: [row["reward"] for row in a["data"]]),
    ("/get_reward", lambda some: {"query": [rendered(one) for one in some]}, lambda a: a["rewards"]),
    ("/v1/score/evaluation", lambda some: {"model": "x", "messages": [rendered(one) for one in some]},
     lambda a: a["scores"]),
    ("/slime", lambda some: {"prompt": some[0][0], "response": some[0][1], "label": None}, lambda a: [a]),
    ("/classify", lambda some: {"input": [rendered(one) for one in some], "use_activation": False},
     lambda a: [row["probs"][0] for row in a["data"]]),
    ("/pooling", lambda some: {"input": [rendered(one) for one in some]},
     lambda a: [row["data"][0] for row in a["data"]]),
    ("/predict", lambda some: {"inputs": [list(one) for one in some], "raw_scores": True},
     lambda a: [row[0]["score"] for row in a]),
]  # fmt: skip
BAD: list[tuple[str, bytes]] = [
    ("/v1/rewards", b"{"),
    ("/v1/rewards", b'{"inputs": []}'),
    ("/v1/rewards", b'{"inputs": [{"prompt": "a", "response": ""}]}'),
    ("/get_reward", b'{"query": 3}'),
    ("/slime", b'{"prompt": [], "response": "x"}'),
    ("/predict", b'{"inputs": []}'),
    ("/m/nobody/get_reward", b'{"query": ["a"]}'),
]


async def main(minutes: float) -> None:
    """Print what was right and what was not."""
    name, songs = _songs()
    told, until = Told(), time.monotonic() + 60 * minutes
    with run_sparserm(SPARSERM_API_KEYS="worker,admin=boss", SPARSERM_DEFAULT_MODEL=name) as server:
        async with httpx.AsyncClient(
            base_url=f"{server.url}/k/worker", timeout=120, verify=ssl.create_default_context()
        ) as http:
            voices = [_voice(http, songs, random.Random(n), told, until) for n in range(VOICES)]
            await asyncio.gather(*voices, _reloads(http, name, told, until), _watch(server, told, until))
            answers = Counter[str]()
            told_by = (await http.get(f"{server.url}/metrics", headers=ADMIN)).text
            for sample in parse_samples(told_by, "sparserm_requests_total"):
                answers[sample.labels["code"]] += int(sample.value)
            left = server.metric("sparserm_backlog_tokens", "boss")
    _report(told, answers, left, minutes)


def _songs() -> tuple[str, list[tuple[SoakItem, float]]]:
    """Items and their rewards, computed here; the engine is gone afterwards."""
    engine, rng = loading.load_engine(Settings(), lambda *_: None), random.Random(5)
    items = [
        (
            " ".join(rng.choices(WORDS, k=rng.randint(2, 30))),
            " ".join(rng.choices(WORDS, k=rng.randint(1, 60))),
        )
        for _ in range(ITEMS)
    ]
    name = next(iter(engine.models))
    exchanges = [Item((Message("user", asked),), said) for asked, said in items]
    jobs = [ScoreJob(one, ScoreOptions((name,), Explain.NONE)) for one in engine.encode(exchanges)]
    found = [result for job in jobs for result in engine.score([job]) if isinstance(result, ScoredItem)]
    songs = [(item, one.scores[0].reward) for item, one in zip(items, found, strict=True)]
    del engine
    gc.collect()
    return name, songs


async def _voice(
    http: httpx.AsyncClient, songs: list[tuple[SoakItem, float]], rng: random.Random, told: Told, until: float
) -> None:
    while time.monotonic() < until:
        chance = rng.random()
        if chance < 0.05:
            await _bad(http, rng, told)
        elif chance < 0.1:
            await _hang_up(http, songs, rng, told)
        else:
            await _good(http, songs, rng, told)


async def _good(
    http: httpx.AsyncClient, songs: list[tuple[SoakItem, float]], rng: random.Random, told: Told
) -> None:
    path, write, read = rng.choice(DIALECTS)
    some = rng.sample(songs, rng.choice([1, 1, 1, 2, 4, 8, 32]))
    answer = await http.post(path, json=write([item for item, _ in some]))
    if answer.status_code != 200:
        told.wrong.append(f"{path}: {answer.status_code} {answer.text[:200]}")
        return
    found = read(answer.json())
    for (_, wanted), reward in zip(some, found, strict=False):
        if abs(wanted - reward) <= TOLERANCE:
            told.right += 1
        else:
            told.wrong.append(f"{path}: {wanted} but {reward}")
    told.happened[path] += 1


async def _bad(http: httpx.AsyncClient, rng: random.Random, told: Told) -> None:
    path, body = rng.choice(BAD)
    answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    told.happened["bad input"] += 1
    if not 400 <= answer.status_code < 500:
        told.wrong.append(f"{path} with {body!r}: {answer.status_code}")


async def _hang_up(
    http: httpx.AsyncClient, songs: list[tuple[SoakItem, float]], rng: random.Random, told: Told
) -> None:
    some = [native(item) for item, _ in rng.sample(songs, rng.randint(1, 64))]
    try:
        await http.post("/v1/rewards", json={"inputs": some}, timeout=rng.uniform(0.01, 0.3))
        told.happened["answered before hanging up"] += 1
    except httpx.TimeoutException:
        told.happened["hung up"] += 1


async def _reloads(http: httpx.AsyncClient, name: str, told: Told, until: float) -> None:
    root = str(http.base_url).partition("/k/")[0]
    while time.monotonic() < until - 10:
        await asyncio.sleep(10)
        answer = await http.post(f"{root}/v1/models/{name}/reload", headers=ADMIN)
        told.happened["reload"] += 1
        if answer.status_code != 200:
            told.wrong.append(f"reload: {answer.status_code} {answer.text[:200]}")


async def _watch(server: ServerProcess, told: Told, until: float) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(min(10.0, max(0.0, until - time.monotonic())))
        told.memory.append(server.resident_mib)
        if len(told.memory) % 6 == 0:
            print(
                f"  {len(told.memory) / 6:.0f} min: {told.right} right, {told.memory[-1]:.0f} MiB", flush=True
            )


def _report(told: Told, answers: Counter[str], left: float, minutes: float) -> None:
    tenth = max(len(told.memory) // 10, 1)
    early = statistics.mean(told.memory[tenth : 2 * tenth])
    late = statistics.mean(told.memory[-tenth:])
    print(f"{minutes:.0f} min, load average {os.getloadavg()[0]:.2f}")
    print(f"{told.right} rewards right, {len(told.wrong)} wrong: {told.wrong[:5]}")
    print(f"answers by status: {dict(answers)}; tokens still held: {left:.0f}")
    print(f"happened: {dict(told.happened)}")
    print(f"memory: {early:.0f} MiB in the second tenth, {late:.0f} in the last ({late / early - 1:+.1%})")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
