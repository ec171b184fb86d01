"""Times the engine (make bench): packed against padded batches, the cost of explanations, HTTP overhead.

The contenders are interleaved in one run; the machine's matrix-product peak and load average are printed too.
The values are medians; compare the ratios, not the times.
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
from app.scores import ScoredItem
from app.serve.application import create_app
from app.serve.drift import DriftMonitor
from app.serve.metrics import Metrics
from app.settings import Settings
from app.types import Item, Message, ScoreJob, ScoreOptions
from benchmarks import machine

ROUNDS = 5
PROMPTS = 4
RESPONSES = 8
HTTP_ROUNDS = 30
WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print all three comparisons."""
    # Without a prefix cache, so that a round does not know the prompts of the one before.
    settings = Settings(prefix_cache_mib=0)
    engine = loading.load_engine(settings, lambda *_: None)
    print(
        f"load average {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads, {engine.backbone.dtype}"
    )
    compare_packed_with_padded(engine, settings)
    compare_explanations_with_reward_only(engine)
    compare_http_with_engine(engine, settings)


def compare_packed_with_padded(engine: Engine, settings: Settings) -> None:
    """32 items (4 prompts, 8 responses each): packed with shared prefixes against padded batches of 8."""
    rng = random.Random(0)
    items = _make_groups(rng, engine.backbone.config.vocab_size)
    useful_tokens, packed = sum(map(len, items)), pack(items)
    run_padded = _make_padded_runner(engine, settings)
    reads = {engine.backbone.num_layers: packed.computed_rows}
    contenders: dict[str, Callable[[], object]] = {
        "packed, prefixes shared": lambda: engine.backbone.residuals(packed, reads),
        "padded batches of 8": lambda: run_padded(items),
    }
    times = _time_interleaved(contenders)
    peak = machine.measure_peak_gflops([])
    computed = len(packed.ids)
    share = f"{useful_tokens} tokens, computed {computed} ({computed / useful_tokens:.0%})"
    print(f"\n{PROMPTS} prompts x {RESPONSES} responses: {share}")
    for name, seconds in times.items():
        print(
            f"  {name:<24} {useful_tokens / statistics.median(seconds):8.0f} useful tokens/s "
            f"{_format_range(seconds)}"
        )
    packed_s, padded_s = (statistics.median(seconds) for seconds in times.values())
    print(f"  ratio {padded_s / packed_s:.2f}; GEMM peak in this run {peak:.0f} GFLOP/s")


def compare_explanations_with_reward_only(engine: Engine) -> None:
    """32 different items: explanations, uncertainty and the drift monitor, against the reward only."""
    rng = random.Random(2)
    name, model = next(iter(engine.models.items()))
    items = [Item((Message("user", _random_text(rng, 60)),), _random_text(rng, 60)) for _ in range(32)]
    encoded = engine.encode(items)
    drift = DriftMonitor(engine.models, Metrics(CollectorRegistry()))

    @torch.inference_mode()
    def compute_reward_only() -> None:
        packed = pack([item.ids for item in encoded])
        spans = [pooled_span(model.card.readout, item.response_turn) for item in encoded]
        rows = np.concatenate([packed.rows(i, *bounds) for i, bounds in enumerate(spans)])
        layer = engine.backbone.residuals(packed, {model.card.layer: rows})[model.card.layer]
        projected = model.dictionary.project(layer.at(rows))
        model.head.score_members(
            model.head.standardise(mean_pool(projected, [stop - start for start, stop in spans]))
        ).mean(1)

    def score_with_explanations() -> None:
        for result in engine.score([ScoreJob(item, ScoreOptions((name,))) for item in encoded]):
            if isinstance(result, ScoredItem):
                drift.observe(result.scores[0], "bench")

    times = _time_interleaved(
        {"reward only": compute_reward_only, "explanations, drift": score_with_explanations}
    )
    reward_only_s, explained_s = (statistics.median(seconds) for seconds in times.values())
    print(f"\n32 items of {sum(len(item.ids) for item in encoded)} tokens, {name}")
    print(f"  reward only {reward_only_s * 1e3:.0f} ms {_format_range(times['reward only'])}")
    print(
        f"  with explanations, uncertainty and drift {explained_s * 1e3:.0f} ms; "
        f"ratio {explained_s / reward_only_s:.3f}"
    )


def compare_http_with_engine(engine: Engine, settings: Settings) -> None:
    """One item at a time on an idle server: HTTP against engine.score of the same item."""
    rng = random.Random(1)
    http_s: list[float] = []
    engine_s: list[float] = []
    with _serve(engine, settings) as client:
        for round_ in range(HTTP_ROUNDS):
            item = Item((Message("user", _random_text(rng, 60)),), _random_text(rng, 60))
            body = {"inputs": [{"prompt": item.messages[0].content, "response": item.response}]}
            contenders = [
                (http_s, lambda body=body: client.post("/v1/rewards", json=body).raise_for_status()),
                (engine_s, lambda item=item: _score(engine, item)),
            ]
            for times, call in contenders if round_ % 2 else reversed(contenders):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
    ratio = statistics.median(http_s) / statistics.median(engine_s)
    print(f"\none item, idle server: HTTP {statistics.median(http_s) * 1e3:.1f} ms {_format_range(http_s)}")
    print(
        f"  engine.score {statistics.median(engine_s) * 1e3:.1f} ms {_format_range(engine_s)}; "
        f"ratio {ratio:.3f}"
    )


def _make_groups(rng: random.Random, vocabulary: int) -> list[tuple[int, ...]]:
    """The token ids of every prompt with each of its responses; lengths vary."""
    items = []
    for group in range(PROMPTS):
        prompt = rng.choices(range(10, vocabulary), k=200 + 30 * group)
        items += [
            (*prompt, *rng.choices(range(10, vocabulary), k=100 + 20 * response))
            for response in range(RESPONSES)
        ]
    return items


def _make_padded_runner(engine: Engine, settings: Settings) -> Callable[[list[tuple[int, ...]]], None]:
    """A function that runs the same cut backbone in transformers: right-padded batches of eight."""
    source = model_sources.find_source(engine.backbone.name, settings.models_dir)
    checkpoint = model_sources.fetch_checkpoint(
        source, num_layers=engine.backbone.num_layers, cache=settings.cache, progress=lambda *_: None
    )
    model = AutoModel.from_pretrained(
        checkpoint.path, num_hidden_layers=engine.backbone.num_layers, dtype=engine.backbone.dtype
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


def _time_interleaved(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def _score(engine: Engine, item: Item) -> object:
    (encoded,) = engine.encode([item])
    return engine.score([ScoreJob(encoded, ScoreOptions((next(iter(engine.models)),)))])


@contextmanager
def _serve(engine: Engine, settings: Settings) -> Iterator[httpx.Client]:
    """Serve the engine over HTTP on a free loopback port."""
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


def _random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def _format_range(seconds: list[float]) -> str:
    return f"[{min(seconds) * 1e3:.0f}-{max(seconds) * 1e3:.0f} ms]"


if __name__ == "__main__":
    main()
