"""Times explanations (python -m benchmarks.explanation_cost): rewards with reasons against rewards alone.

The contenders are interleaved in one process, in another order in every round, without a prefix cache. On a
CPU, times are processor time, so that other processes matter less. Compare the ratios, not the times.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from app.backbone.prefix_cache import PrefixCache
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, ScoreJob, ScoreOptions
from benchmarks.turns import make_conversation

MODES = (Explain.NONE, Explain.FEATURES, Explain.TOKENS)
Times = Mapping[Explain, Sequence[float]]


def main() -> None:
    """Print the times of a batch of responses, for one model and for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    engine = loading.load_engine(Settings(), lambda *_: None)
    print(
        f"load average {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads, {engine.backbone.dtype}"
    )
    items = [make_conversation(1, seed) for seed in range(args.batch)]
    tokens = sum(len(item.ids) for item in engine.encode(items))
    for models in (tuple(engine.models)[:1], tuple(engine.models)):
        times = time_modes(engine, items, models, args.rounds)
        print(f"\n{args.batch} responses, {tokens} tokens, {len(models)} model(s)")
        for mode, seconds in times.items():
            median, ratio = statistics.median(seconds), compute_ratio(times, mode)
            print(f"  {mode:<10} {median * 1e3:8.1f} ms, ratio {ratio:.3f}")


def time_modes(
    engine: Engine, items: Sequence[Item], models: tuple[str, ...], rounds: int
) -> dict[Explain, list[float]]:
    """Return the seconds of each kind of explanation in each round, after one round that is not counted."""
    engine.prefix_cache = PrefixCache(0)
    read_clock = time.process_time if engine.backbone.device.type == "cpu" else time.perf_counter
    jobs = {
        mode: [ScoreJob(encoded, ScoreOptions(models, mode)) for encoded in engine.encode(items)]
        for mode in MODES
    }
    times: dict[Explain, list[float]] = {mode: [] for mode in MODES}
    for mode in (*MODES, *(mode for _ in range(rounds) for mode in random.sample(MODES, len(MODES)))):
        started = read_clock()
        engine.score(jobs[mode])
        times[mode].append(read_clock() - started)
    return {mode: seconds[1:] for mode, seconds in times.items()}


def compute_ratio(times: Times, mode: Explain) -> float:
    """Return how many times as long as rewards alone a kind of explanation took: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[mode], times[Explain.NONE], strict=True))


if __name__ == "__main__":
    main()
