"""Times the rewards of turns (python -m benchmarks.turns): all turns of conversations against the last alone.

The contenders are interleaved in one process, in another order in every round, without a prefix cache. On a
CPU, times are processor time, so that other processes matter less. Compare the ratios, not the times.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from app.backbone.prefix_cache import PrefixCache
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, Message, ScoreJob, ScoreOptions

TURNS = 10
LAST_TURN, ALL_TURNS, CUT_CONVERSATIONS = "last turn", "all turns", "every turn as an item"
QUESTION_WORDS, ANSWER_WORDS = 12, 36
WORDS = [word for word in Path(__file__).read_text().split() if word.isalpha()]
Times = Mapping[str, Sequence[float]]


def main() -> None:
    """Print the times of one conversation and of several in one batch, for one model and for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    engine = loading.load_engine(Settings(), lambda *_: None)
    print(
        f"load average {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads, {engine.backbone.dtype}"
    )
    for models in (tuple(engine.models)[:1], tuple(engine.models)):
        for count in args.batch:
            conversations = [make_conversation(TURNS, seed) for seed in range(count)]
            times = time_turns(engine, conversations, models, args.rounds)
            tokens = sum(len(item.ids) for item in engine.encode(conversations, truncate=False))
            print(f"\n{count} x {TURNS} turns, {tokens} tokens, {len(models)} model(s)")
            for name, seconds in times.items():
                median, ratio = statistics.median(seconds), compute_ratio(times, name)
                print(f"  {name:<22} {median * 1e3:8.1f} ms, ratio {ratio:.3f}")


def make_conversation(turns: int, seed: int) -> Item:
    """Return a conversation of `turns` questions and answers of random words; the last answer is scored."""
    rng = random.Random(seed)
    *messages, last = (
        Message(role, " ".join(rng.choices(WORDS, k=words)))
        for role, words in (("user", QUESTION_WORDS), ("assistant", ANSWER_WORDS)) * turns
    )
    return Item(tuple(messages), last.content)


def time_turns(
    engine: Engine, conversations: Sequence[Item], models: tuple[str, ...], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round; no round knows the prompts of the one before."""
    engine.prefix_cache = PrefixCache(0)
    read_clock = time.process_time if engine.backbone.device.type == "cpu" else time.perf_counter
    features = ScoreOptions(models)
    cuts = [cut for conversation in conversations for cut in _cut_after_each_turn(conversation)]
    contenders: dict[str, Callable[[], object]] = {
        LAST_TURN: _make_scorer(engine, conversations, features),
        ALL_TURNS: _make_scorer(engine, conversations, ScoreOptions(models, Explain.TURNS)),
        CUT_CONVERSATIONS: _make_scorer(engine, cuts, features),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name in (*contenders, *(name for _ in range(rounds) for name in random.sample([*contenders], 3))):
        started = read_clock()
        contenders[name]()
        times[name].append(read_clock() - started)
    return {name: seconds[1:] for name, seconds in times.items()}


def compute_ratio(times: Times, name: str) -> float:
    """Return how many times as long as the last turn alone a contender took: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[name], times[LAST_TURN], strict=True))


def _make_scorer(engine: Engine, items: Sequence[Item], options: ScoreOptions) -> Callable[[], object]:
    jobs = [ScoreJob(encoded, options) for encoded in engine.encode(items)]
    return lambda: engine.score(jobs)


def _cut_after_each_turn(item: Item) -> list[Item]:
    messages = (*item.messages, Message("assistant", item.response))
    return [Item(messages[:index], messages[index].content) for index in range(1, len(messages), 2)]


if __name__ == "__main__":
    main()
