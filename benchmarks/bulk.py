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
from app.model import home
from app.model.engine import Engine
from app.model.packing import passes
from app.settings import Settings
from app.types import Ask, Exchange, Job, Message
from tests import tiny

ROUNDS = 3
WORDS = Path(__file__).read_text().split()


def main() -> None:
    """Print both rates, their ratio, and the memory before and after."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.world(Path(folder)) if given.tiny else Settings()
        engine = home.engine(settings, lambda *_: None)
        source = Path(folder) / "rows.jsonl"
        exchanges = _written(source, given.rows, tiny.WORDS if given.tiny else WORDS)
        name = next(iter(engine.models))
        resident = Resident(engine, Question(name), settings)
        load, threads = os.getloadavg()[0], torch.get_num_threads()
        print(f"{given.rows:,} rows, {name}, load average {load:.2f}, {threads} threads")
        times: dict[str, list[float]] = {"engine": [], "score": []}
        for round_ in range(ROUNDS):
            order = bulk.Order(SCORE, Question(name), str(source), Path(folder) / f"{round_}.jsonl")
            before = _peak()
            for what in ("engine", "score") if round_ % 2 else ("score", "engine"):
                started = time.perf_counter()
                if what == "engine":
                    _alone(engine, exchanges, name, settings.batch_tokens)
                else:
                    bulk.run(order, nullcontext(resident), lambda *_: None, pass_tokens=settings.batch_tokens)
                times[what].append(time.perf_counter() - started)
            print(f"  round {round_}: {_said(times, given.rows)}; peak memory {before} to {_peak()} MiB")
    alone, whole = (statistics.median(seconds) for seconds in times.values())
    print(f"score at {alone / whole:.3f} of the engine's own rate")


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
