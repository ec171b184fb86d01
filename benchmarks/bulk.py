"""`sparserm score` over a file against the bare engine on the same items, interleaved in one run.

`python -m benchmarks.bulk [ROWS]` takes the first shipped model; with `--tiny` it is the tests' toy, on which
everything around the engine weighs most. The rows are all different, so that there is no prefix to share.
"""

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from app.align import bulk
from app.align.judges import Question
from app.align.resident import Resident
from app.align.tasks import SCORE
from app.align.windows import PASS_TOKENS
from app.model import home
from app.model.engine import Engine
from app.model.packing import passes
from app.settings import Settings
from app.types import Ask, Exchange, Job, Message
from tests import tiny

ROUNDS = 3
WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print both rates, their ratio, and the memory the rounds took."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.world(Path(folder)) if given.tiny else Settings()
        settings = settings.model_copy(  # nobody is to know a prompt from the round before
            update={"recall_mib": 0, "batch_tokens": settings.batch_tokens or PASS_TOKENS}
        )
        engine = home.engine(settings, lambda *_: None)
        exchanges = _written(Path(folder) / "rows.jsonl", given.rows, tiny.WORDS if given.tiny else WORDS)
        name, load = next(iter(engine.models)), os.getloadavg()[0]
        print(f"{given.rows:,} rows, {name}, load average {load:.2f}, {torch.get_num_threads()} threads")
        times: dict[str, list[float]] = {"engine": [], "score": []}
        for round_ in range(ROUNDS):
            contenders = {
                "engine": lambda: _alone(engine, exchanges, name, settings.batch_tokens),
                "score": lambda: _whole(engine, Path(folder), name, settings),
            }
            for what in sorted(contenders, reverse=bool(round_ % 2)):
                started = time.perf_counter()
                contenders[what]()
                times[what].append(time.perf_counter() - started)
            print(f"  {_said(times, given.rows)}; peak memory {_peak()} MiB")
    alone, whole = (statistics.median(seconds) for seconds in times.values())
    print(f"score at {alone / whole:.3f} of the engine's own rate")


def _whole(engine: Engine, folder: Path, name: str, settings: Settings) -> None:
    """The command, but for loading the model."""
    question = Question(name)
    order = bulk.Order(SCORE, question, str(folder / "rows.jsonl"), folder / "out.jsonl", fresh=True)
    judge = nullcontext(Resident(engine, question, settings))
    bulk.run(order, judge, lambda *_: None, pass_tokens=settings.batch_tokens)


def _alone(engine: Engine, exchanges: list[Exchange], name: str, budget: int) -> None:
    """Everything in memory, in full passes, and nothing done with it."""
    encoded = engine.encode(exchanges)
    for some in passes([one.ids for one in encoded], budget):
        engine.score([Job(encoded[i], Ask((name,))) for i in some])


def _written(file: Path, rows: int, words: list[str]) -> list[Exchange]:
    rng = random.Random(0)
    exchanges = []
    with file.open("w") as stream:
        for n in range(rows):
            prompt, response = (" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(2))
            exchanges.append(Exchange((Message("user", f"{n} {prompt}"),), response))
            stream.write(json.dumps({"prompt": f"{n} {prompt}", "response": response}) + "\n")
    return exchanges


def _said(times: dict[str, list[float]], rows: int) -> str:
    return ", ".join(f"{name} {rows / seconds[-1]:.1f} rows/s" for name, seconds in times.items())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=300)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
