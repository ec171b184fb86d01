"""Times `sparserm score` on a file against the bare engine on the same items, interleaved in one run.

`python -m benchmarks.offline_scoring [ROWS]` uses the first shipped model; `--tiny` uses the tests' tiny
model, for which everything around the engine weighs most. All rows differ, so there is no prefix to share.
Rounds are short and many, because a machine's speed changes within minutes.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from app.backbone.packing import split_into_batches
from app.backbone.runtime.threads import run_in_temporary_thread
from app.offline import run
from app.offline.chunks import DEFAULT_BATCH_TOKENS
from app.offline.local import LocalScorer
from app.offline.scorers import ScoringRequest
from app.offline.tasks import SCORE
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Item, Message, ScoreJob, ScoreOptions
from benchmarks.summary_statistics import ratio_by_round
from tests.support import tiny

WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print both rates in every round, then the ratios of the rates and of the processor times."""
    args = _parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = _make_settings(Path(folder), tiny_models=args.tiny)
        engine = run_in_temporary_thread(lambda: loading.load_engine(settings, lambda *_: None))
        items = _write_rows(Path(folder) / "rows.jsonl", args.rows, tiny.WORDS if args.tiny else WORDS)
        model, load_average = next(iter(engine.models)), os.getloadavg()[0]
        threads = torch.get_num_threads()
        print(f"{args.rows:,} rows, {model}, load average {load_average:.2f}, {threads} threads")
        contenders = {
            "engine": lambda: _score_with_engine(engine, items, model, settings.max_batch_tokens),
            "score": lambda: _score_file(engine, Path(folder), model, settings),
        }
        wall_s, cpu_s = _time_interleaved(contenders, args.rounds, args.rows)
    rate, cpu = (
        ratio_by_round(wall_s["engine"], wall_s["score"]),
        ratio_by_round(cpu_s["score"], cpu_s["engine"]),
    )
    print(f"score reaches {rate:.3f} of the engine's rate, with {cpu:.3f} times its processor time")


def _make_settings(folder: Path, *, tiny_models: bool) -> Settings:
    """Settings without a prefix cache, which would know the prompts of the round before."""
    settings = tiny.build_models(folder) if tiny_models else Settings()
    batch_tokens = settings.max_batch_tokens or DEFAULT_BATCH_TOKENS
    return settings.model_copy(update={"prefix_cache_mib": 0, "max_batch_tokens": batch_tokens})


Times = dict[str, dict[int, float]]


def _time_interleaved(
    contenders: dict[str, Callable[[], None]], rounds: int, rows: int
) -> tuple[Times, Times]:
    """Wall and processor seconds by contender and round; the order changes every round."""
    wall_s, cpu_s = ({name: dict[int, float]() for name in contenders} for _ in range(2))
    for round_ in range(rounds):
        for name in sorted(contenders, reverse=bool(round_ % 2)):
            wall_s[name][round_], cpu_s[name][round_] = _time(contenders[name])
        rates = (f"{name} {rows / wall_s[name][round_]:.1f} rows/s" for name in contenders)
        print(f"  {', '.join(rates)}; peak memory {_peak_mib()} MiB", flush=True)
    return wall_s, cpu_s


def _time(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds, and processor seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    run_in_temporary_thread(work)
    return time.perf_counter() - wall, time.process_time() - cpu


def _score_file(engine: Engine, folder: Path, model: str, settings: Settings) -> None:
    """What the command does, except loading the model."""
    request = ScoringRequest(model)
    config = run.OfflineRunConfig(
        SCORE, request, str(folder / "rows.jsonl"), folder / "out.jsonl", fresh=True
    )
    scorer = nullcontext(LocalScorer(engine, request, settings))
    run.run_offline(config, scorer, lambda *_: None, batch_tokens=settings.max_batch_tokens)


def _score_with_engine(engine: Engine, items: list[Item], model: str, batch_tokens: int) -> None:
    """Score items that are already in memory, in full batches, and drop the results."""
    encoded = engine.encode(items)
    for indices in split_into_batches([item.ids for item in encoded], batch_tokens):
        engine.score([ScoreJob(encoded[i], ScoreOptions((model,))) for i in indices])


def _write_rows(file: Path, rows: int, words: list[str]) -> list[Item]:
    rng = random.Random(0)
    items = []
    with file.open("w") as stream:
        for n in range(rows):
            prompt, response = (" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(2))
            items.append(Item((Message("user", f"{n} {prompt}"),), response))
            stream.write(json.dumps({"prompt": f"{n} {prompt}", "response": response}) + "\n")
    return items


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="use the tests' tiny model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
