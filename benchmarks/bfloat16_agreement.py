"""What 16 bits change: the same responses under the same models, in float32 and in bfloat16.

The gate is .999 for the ranks of rewards and .9 for the ten largest features; the time of both is the
processor's, interleaved, so that other programs disturb it little.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from app.backbone.packing import split_into_batches
from app.data.pairs import read_pairs
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, Score, ScoredItem, ScoreJob, ScoreOptions

DTYPES = ("float32", "bfloat16")
SPEARMAN, OVERLAP, TOP = 0.999, 0.9, 10
PASS_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one model: rank correlation of rewards, shared share of the largest features, furthest reward."""

    spearman: float
    overlap: float
    furthest: float

    @property
    def passes(self) -> bool:
        """Whether the gate opens."""
        return self.spearman >= SPEARMAN and self.overlap >= OVERLAP


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", help="files of preference pairs")
    parser.add_argument("--limit", type=int, default=30, help="pairs of each file")
    given = parser.parse_args()
    pairs = [pair for file in given.pairs for pair in read_pairs(file)[: given.limit]]
    exchanges = list(dict.fromkeys(exchange for pair in pairs for exchange in pair.items))
    engines = [
        loading.load_engine(Settings(dtype=dtype, prefix_cache_mib=0), lambda *_: None) for dtype in DTYPES
    ]
    found, seconds = compared(engines, exchanges)
    for name, one in found.items():
        told = f"Spearman {one.spearman:.5f}, overlap {one.overlap:.3f}, at most {one.furthest:.3f} off"
        print(f"{name}: {told}: {'passes' if one.passes else 'FAILS'}")
    whole, half = seconds
    print(f"{len(exchanges)} responses: {whole:.1f} s and {half:.1f} s, {whole / half:.2f} times")


def compared(
    engines: Sequence[Engine], exchanges: Sequence[Item]
) -> tuple[dict[str, Agreement], list[float]]:
    """Agreement of two engines by model, and the seconds each computed."""
    names = tuple(engines[0].models)
    encoded = engines[0].encode(exchanges)
    said: list[list[tuple[Score, ...]]] = [[], []]
    seconds = [0.0, 0.0]
    for some in split_into_batches([one.ids for one in encoded], PASS_TOKENS):
        jobs = [ScoreJob(encoded[i], ScoreOptions(names, Explain.FEATURES, top_k=TOP)) for i in some]
        for at, engine in enumerate(engines):
            started = time.process_time()
            scored = [one for one in engine.score(jobs) if isinstance(one, ScoredItem)]
            seconds[at] += time.process_time() - started
            said[at].extend(one.scores for one in scored)
    sides = [list(zip(*one, strict=True)) for one in said]
    return {name: _agreement(*(side[at] for side in sides)) for at, name in enumerate(names)}, seconds


def _agreement(exact: Sequence[Score], other: Sequence[Score]) -> Agreement:
    rewards = np.array([[a.reward, b.reward] for a, b in zip(exact, other, strict=True)])
    shared = [len(_latents(a) & _latents(b)) / TOP for a, b in zip(exact, other, strict=True)]
    return Agreement(
        float(spearmanr(*rewards.T).statistic),
        float(np.mean(shared)),
        float(np.abs(np.diff(rewards)).max()),
    )


def _latents(score: Score) -> set[int]:
    return {one.feature.latent for one in score.features}


if __name__ == "__main__":
    main()
