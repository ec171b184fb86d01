"""Compares rewards in float32 and bfloat16: the same responses under the same models.

bfloat16 is accepted if the rank correlation of rewards is at least .999 and the ten largest features overlap
by at least .9. Both engines are timed in processor seconds, interleaved, so that other programs disturb the
times little.
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
from app.scores import Score, ScoredItem
from app.settings import Settings
from app.types import Explain, Item, ScoreJob, ScoreOptions

DTYPES = ("float32", "bfloat16")
MIN_SPEARMAN = 0.999
MIN_OVERLAP = 0.9
TOP_FEATURES = 10
BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Agreement:
    """For one model: rank correlation, overlap of the largest features, largest reward difference."""

    spearman: float
    overlap: float
    max_difference: float

    @property
    def is_accepted(self) -> bool:
        """Whether the rewards agree well enough."""
        return self.spearman >= MIN_SPEARMAN and self.overlap >= MIN_OVERLAP


def main() -> None:
    """Print the agreement for each model, and the time of both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", help="files of preference pairs")
    parser.add_argument("--limit", type=int, default=30, help="pairs from each file")
    args = parser.parse_args()
    pairs = [pair for file in args.pairs for pair in read_pairs(file)[: args.limit]]
    items = list(dict.fromkeys(item for pair in pairs for item in pair.items))
    engines = [
        loading.load_engine(Settings(dtype=dtype, prefix_cache_mib=0), lambda *_: None) for dtype in DTYPES
    ]
    agreements, seconds = compare_engines(engines, items)
    for name, agreement in agreements.items():
        print(
            f"{name}: Spearman {agreement.spearman:.5f}, overlap {agreement.overlap:.3f}, "
            f"difference at most {agreement.max_difference:.3f}: "
            f"{'passes' if agreement.is_accepted else 'FAILS'}"
        )
    float32_s, bfloat16_s = seconds
    print(
        f"{len(items)} responses: {float32_s:.1f} s in float32, {bfloat16_s:.1f} s in bfloat16, "
        f"{float32_s / bfloat16_s:.2f} times as fast"
    )


def compare_engines(
    engines: Sequence[Engine], items: Sequence[Item]
) -> tuple[dict[str, Agreement], list[float]]:
    """The agreement of two engines for each model, and the processor seconds of each engine."""
    models = tuple(engines[0].models)
    encoded = engines[0].encode(items)
    scores: list[list[tuple[Score, ...]]] = [[], []]
    seconds = [0.0, 0.0]
    for indices in split_into_batches([item.ids for item in encoded], BATCH_TOKENS):
        options = ScoreOptions(models, Explain.FEATURES, top_k=TOP_FEATURES)
        jobs = [ScoreJob(encoded[i], options) for i in indices]
        for n, engine in enumerate(engines):
            started = time.process_time()
            scored = [result for result in engine.score(jobs) if isinstance(result, ScoredItem)]
            seconds[n] += time.process_time() - started
            scores[n].extend(result.scores for result in scored)
    scores_by_model = [list(zip(*engine_scores, strict=True)) for engine_scores in scores]
    agreements = {
        model: _agreement(*(model_scores[n] for model_scores in scores_by_model))
        for n, model in enumerate(models)
    }
    return agreements, seconds


def _agreement(exact: Sequence[Score], other: Sequence[Score]) -> Agreement:
    rewards = np.array([[a.reward, b.reward] for a, b in zip(exact, other, strict=True)])
    overlaps = [len(_latents(a) & _latents(b)) / TOP_FEATURES for a, b in zip(exact, other, strict=True)]
    return Agreement(
        float(spearmanr(*rewards.T).statistic),
        float(np.mean(overlaps)),
        float(np.abs(np.diff(rewards)).max()),
    )


def _latents(score: Score) -> set[int]:
    return {contribution.feature.latent for contribution in score.features}


if __name__ == "__main__":
    main()
