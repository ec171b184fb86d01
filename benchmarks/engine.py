"""make bench: shared prefixes against padded batches, the price of reasons, HTTP against the engine.

Everything is measured in one run, interleaved, with the machine's matrix-product peak and load
average beside it. Figures are medians; read the ratios, not the times.
"""

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from prometheus_client import CollectorRegistry
from transformers import AutoModel

from app.backbone import model_sources
from app.backbone.packing import pack
from app.reward import loading
from app.reward.engine import Engine
from app.reward.pooling import mean_pool, pooled_span
from app.serve.application import create_app
from app.serve.drift import DriftMonitor
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import Item, Message, ScoredItem, ScoreJob, ScoreOptions
from benchmarks import machine

ROUNDS = 5
PROMPTS, RESPONSES = 4, 8
PAIRS = 30
WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print both comparisons."""
    settings = Settings(prefix_cache_mib=0)  # a round must not know the prompts of the one before
    engine = loading.load_engine(settings, lambda *_: None)
    print(
        f"load average {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads, {engine.backbone.dtype}"
    )
    sharing(engine, settings)
    reasons(engine)
    latency(engine, settings)


def sharing(engine: Engine, settings: Settings) -> None:
    """32 items of 4 prompts x 8 responses: packed with shared prefixes against padded batches of 8."""
    rng = random.Random(0)
    items = _groups(rng, engine.backbone.config.vocab_size)
    useful, packed = sum(map(len, items)), pack(items)
    padded = _padded(engine, settings)
    reads = {engine.backbone.num_layers: packed.computed_rows}
    contenders: dict[str, Callable[[], object]] = {
        "packed, prefixes shared": lambda: engine.backbone.residuals(packed, reads),
        "padded batches of 8": lambda: padded(items),
    }
    times = _interleaved(contenders)
    peak = machine.measure_peak_gflops([])
    computed = len(packed.ids)
    share = f"{useful} tokens, computed {computed} ({computed / useful:.0%})"
    print(f"\n{PROMPTS} prompts x {RESPONSES} responses: {share}")
    for name, seconds in times.items():
        print(f"  {name:<24} {useful / statistics.median(seconds):8.0f} useful tokens/s {_spread(seconds)}")
    ours, theirs = (statistics.median(seconds) for seconds in times.values())
    print(f"  ratio {theirs / ours:.2f}; GEMM peak in this run {peak:.0f} GFLOP/s")


def reasons(engine: Engine) -> None:
    """32 different pairs: all that an answer says, and the drift monitor, against the reward alone."""
    rng = random.Random(2)
    name, model = next(iter(engine.models.items()))
    exchanges = [Item((Message("user", _text(rng, 60)),), _text(rng, 60)) for _ in range(32)]
    encoded = engine.encode(exchanges)
    drift = DriftMonitor(engine.models, Metrics(CollectorRegistry()))

    @torch.inference_mode()
    def bare() -> None:
        packed = pack([one.ids for one in encoded])
        spans = [pooled_span(model.card.readout, one) for one in encoded]
        rows = np.concatenate([packed.rows(i, *at) for i, at in enumerate(spans)])
        layer = engine.backbone.residuals(packed, {model.card.layer: rows})[model.card.layer]
        projected = model.dictionary.project(layer.at(rows))
        model.head.score_members(
            model.head.standardise(mean_pool(projected, [b - a for a, b in spans]))
        ).mean(1)

    def whole() -> None:
        for result in engine.score([ScoreJob(one, ScoreOptions((name,))) for one in encoded]):
            if isinstance(result, ScoredItem):
                drift.observe(result.scores[0], "bench")

    times = _interleaved({"reward alone": bare, "reasons, doubt, drift": whole})
    alone, everything = (statistics.median(seconds) for seconds in times.values())
    print(f"\n32 pairs of {sum(len(one.ids) for one in encoded)} tokens, {name}")
    print(f"  reward alone {alone * 1e3:.0f} ms {_spread(times['reward alone'])}")
    print(f"  with reasons, doubt and drift {everything * 1e3:.0f} ms; ratio {everything / alone:.3f}")


def latency(engine: Engine, settings: Settings) -> None:
    """One pair at a time on an idle server: HTTP against engine.score of the same pair."""
    rng = random.Random(1)
    over: list[float] = []
    bare: list[float] = []
    with _serving(engine, settings) as client:
        for round_ in range(PAIRS):
            exchange = Item((Message("user", _text(rng, 60)),), _text(rng, 60))
            body = {"inputs": [{"prompt": exchange.messages[0].content, "response": exchange.response}]}
            timed = [
                (over, lambda body=body: client.post("/v1/rewards", json=body).raise_for_status()),
                (bare, lambda one=exchange: _score(engine, one)),
            ]
            for times, call in timed if round_ % 2 else reversed(timed):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
    ratio = statistics.median(over) / statistics.median(bare)
    print(f"\none pair, idle server: HTTP {statistics.median(over) * 1e3:.1f} ms {_spread(over)}")
    print(f"  engine.score {statistics.median(bare) * 1e3:.1f} ms {_spread(bare)}; ratio {ratio:.3f}")


def _groups(rng: random.Random, vocabulary: int) -> list[tuple[int, ...]]:
    """Token ids of every prompt with each of its responses; lengths vary."""
    items = []
    for group in range(PROMPTS):
        prompt = rng.choices(range(10, vocabulary), k=200 + 30 * group)
        items += [
            (*prompt, *rng.choices(range(10, vocabulary), k=100 + 20 * response))
            for response in range(RESPONSES)
        ]
    return items


def _padded(engine: Engine, settings: Settings) -> Callable[[list[tuple[int, ...]]], None]:
    """The same cut weights in transformers' own attention, right-padded, eight at a time."""
    source = model_sources.find_source(engine.backbone.name, settings.models_dir)
    place = model_sources.fetch_checkpoint(
        source, num_layers=engine.backbone.num_layers, cache=settings.cache, progress=lambda *_: None
    )
    model = AutoModel.from_pretrained(
        place.path, num_hidden_layers=engine.backbone.num_layers, dtype=engine.backbone.dtype
    ).to(engine.backbone.device)

    @torch.inference_mode()
    def run(items: list[tuple[int, ...]]) -> None:
        for start in range(0, len(items), 8):
            batch = items[start : start + 8]
            width = max(map(len, batch))
            ids = torch.tensor([[*item, *[0] * (width - len(item))] for item in batch])
            mask = torch.tensor([[1] * len(item) + [0] * (width - len(item)) for item in batch])
            model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)

    return run


def _interleaved(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def _score(engine: Engine, exchange: Item) -> object:
    (encoded,) = engine.encode([exchange])
    return engine.score([ScoreJob(encoded, ScoreOptions((next(iter(engine.models)),)))])


@contextmanager
def _serving(engine: Engine, settings: Settings) -> Iterator[httpx.Client]:
    """The engine behind HTTP on a free loopback port."""
    app = create_app(engine, settings, CollectorRegistry())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def _spread(seconds: list[float]) -> str:
    return f"[{min(seconds) * 1e3:.0f}-{max(seconds) * 1e3:.0f} ms]"


if __name__ == "__main__":
    main()
