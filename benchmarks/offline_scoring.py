"""`sparserm score` over a file against the bare engine on the same items, interleaved in one run.

`python -m benchmarks.offline_scoring [ROWS]` takes the first shipped model; with `--tiny` it is the tests' toy, on which
everything around the engine weighs most. All rows differ, so that there is no prefix to share. Rounds are
short and many, because a machine's speed changes within minutes.
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
from benchmarks import summary_statistics
from tests.support import tiny

WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print both rates round by round, then their ratio and that of the processor time."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.build_models(Path(folder)) if given.tiny else Settings()
        settings = settings.model_copy(  # nobody is to know a prompt from the round before
            update={
                "prefix_cache_mib": 0,
                "max_batch_tokens": settings.max_batch_tokens or DEFAULT_BATCH_TOKENS,
            }
        )
        engine = run_in_temporary_thread(lambda: loading.load_engine(settings, lambda *_: None))
        exchanges = _written(Path(folder) / "rows.jsonl", given.rows, tiny.WORDS if given.tiny else WORDS)
        name, load = next(iter(engine.models)), os.getloadavg()[0]
        print(f"{given.rows:,} rows, {name}, load average {load:.2f}, {torch.get_num_threads()} threads")
        turns = {
            "engine": lambda: _alone(engine, exchanges, name, settings.max_batch_tokens),
            "score": lambda: _whole(engine, Path(folder), name, settings),
        }
        walls, cores = ({what: dict[int, float]() for what in turns} for _ in range(2))
        for round_ in range(given.rounds):
            for what in sorted(turns, reverse=bool(round_ % 2)):
                walls[what][round_], cores[what][round_] = _timed(turns[what])
            rates = (f"{what} {given.rows / walls[what][round_]:.1f} rows/s" for what in turns)
            print(f"  {', '.join(rates)}; peak memory {_peak()} MiB", flush=True)
    print(
        f"score at {summary_statistics.ratio_by_round(walls['engine'], walls['score']):.3f} of the engine's own rate,"
    )
    print(
        f"with {summary_statistics.ratio_by_round(cores['score'], cores['engine']):.3f} times its processor time"
    )


def _timed(turn: Callable[[], None]) -> tuple[float, float]:
    """Seconds it took, and seconds of processor time of all threads."""
    wall, core = time.perf_counter(), time.process_time()
    run_in_temporary_thread(turn)
    return time.perf_counter() - wall, time.process_time() - core


def _whole(engine: Engine, folder: Path, name: str, settings: Settings) -> None:
    """The command, but for loading the model."""
    question = ScoringRequest(name)
    order = run.OfflineRunConfig(
        SCORE, question, str(folder / "rows.jsonl"), folder / "out.jsonl", fresh=True
    )
    judge = nullcontext(LocalScorer(engine, question, settings))
    run.run_offline(order, judge, lambda *_: None, batch_tokens=settings.max_batch_tokens)


def _alone(engine: Engine, exchanges: list[Item], name: str, budget: int) -> None:
    """Everything in memory, in full passes, and nothing done with it."""
    encoded = engine.encode(exchanges)
    for some in split_into_batches([one.ids for one in encoded], budget):
        engine.score([ScoreJob(encoded[i], ScoreOptions((name,))) for i in some])


def _written(file: Path, rows: int, words: list[str]) -> list[Item]:
    rng = random.Random(0)
    exchanges = []
    with file.open("w") as stream:
        for n in range(rows):
            prompt, response = (" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(2))
            exchanges.append(Item((Message("user", f"{n} {prompt}"),), response))
            stream.write(json.dumps({"prompt": f"{n} {prompt}", "response": response}) + "\n")
    return exchanges


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
