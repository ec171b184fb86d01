"""Innocent callers: each knows what its rewards must be, and remembers every answer that was not that."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from sparserm_client import Client, Sample

from app.reward.engine import Engine
from app.types import ScoreOptions as Wanted
from tests.support import tiny

TOLERANCE = 1e-5
Corpus = Sequence[tuple[dict[str, str], float]]


def corpus(engine: Engine, count: int = 200) -> Corpus:
    """Items and the rewards an engine in this process gives them."""
    exchanges = tiny.random_items(count, seed=7)
    name = next(iter(engine.models))
    rewards = [scores[0].reward for scores in tiny.score_items(engine, exchanges, Wanted((name,)))]
    inputs = [{"prompt": one.messages[0].content, "response": one.response} for one in exchanges]
    return list(zip(inputs, rewards, strict=True))


@dataclass
class Heard:
    """What a chorus has heard so far."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, wanted: Sequence[float], found: Sequence[float]) -> None:
        """Compare an answer with what it must be."""
        off = [f"{w} but {f}" for w, f in zip(wanted, found, strict=True) if not abs(w - f) <= TOLERANCE]
        with self.lock:
            self.right += len(wanted) - len(off)
            self.wrong += off

    def fail(self, reason: str) -> None:
        """Remember an answer that was none."""
        with self.lock:
            self.wrong.append(reason)


@contextmanager
def singing(url: str, songs: Corpus, *, voices: int = 4, patient: bool = False) -> Iterator[Heard]:
    """Callers that ask on and on; patient ones try again while the server is away."""
    heard, done = Heard(), threading.Event()
    voice = _patient if patient else _strict
    threads = [
        threading.Thread(target=voice, args=(url, songs, random.Random(seed), heard, done))
        for seed in range(voices)
    ]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _strict(url: str, songs: Corpus, rng: random.Random, heard: Heard, done: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        while not done.is_set():
            some = rng.sample(songs, rng.randint(1, 6))
            try:
                answer = http.post("/v1/rewards", json={"inputs": [item for item, _ in some], "top_k": 0})
            except httpx.TransportError as error:
                heard.fail(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code != 200:
                heard.fail(f"{answer.status_code} {answer.text[:200]}")
                continue
            found = [row.get("reward", float("nan")) for row in answer.json()["data"]]
            heard.note([reward for _, reward in some], found)


def _patient(url: str, songs: Corpus, rng: random.Random, heard: Heard, done: threading.Event) -> None:
    with Client(url, patience_s=600) as client:
        while not done.is_set():
            some = rng.sample(songs, rng.randint(1, 6))
            found = client.rewards([Sample(item["prompt"], item["response"]) for item, _ in some])
            heard.note([reward for _, reward in some], [one.reward for one in found])
