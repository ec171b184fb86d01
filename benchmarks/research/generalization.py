"""Measures what the selection of directions gains beyond the test: on other tasks and on rewritten texts.

The heads are those of the ablation. Each is trained once for each seed and scores everything at once: the
test pairs, preference pairs of other tasks, and a sample of the test after every rewriting that changes the
form of a text and keeps its words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from app.evaluate.accuracy import Float64Array
from app.evaluate.audit import paraphrases, robustness
from app.train.features import PairFeatures
from app.train.head.baselines import (
    BaselineMethod,
    train_on_random_directions,
    train_on_selected_directions,
    train_on_whole_residual,
)
from app.types import Pair, Progress
from benchmarks.research.ablation import Ablation, Variant, compute_wins, summarise_wins
from benchmarks.research.variants import train_on_random_latents

NUM_REWRITTEN_PAIRS = 100
METHODS: dict[str, BaselineMethod] = {
    "selected directions": train_on_selected_directions,
    "random latents of the SAE": train_on_random_latents,
    "random directions": train_on_random_directions,
    "whole residual": train_on_whole_residual,
}


@dataclass(frozen=True, slots=True)
class GeneralizationTests:
    """Test pairs by the task they are from, and a sample of this task's: original, and by rewriting."""

    tasks: Mapping[str, list[Pair]]
    original: list[Pair]
    rewritten: Mapping[str, list[Pair]]

    @classmethod
    def from_pairs(cls, test: list[Pair], other: Mapping[str, list[Pair]]) -> "GeneralizationTests":
        """Build the tests from the pairs of this task's test and of other tasks."""
        original = robustness.sample_pairs(test, NUM_REWRITTEN_PAIRS)
        rewritten = {name: paraphrases.rewrite_pairs(name, original) for name in paraphrases.REWRITE_NAMES}
        return cls({"this test": test, **other}, original, rewritten)

    @property
    def parts(self) -> list[list[Pair]]:
        """The pairs of all tests: tasks, the original sample, then the rewritten ones."""
        return [*self.tasks.values(), self.original, *self.rewritten.values()]

    @property
    def pairs(self) -> list[Pair]:
        """All pairs in the order of `parts`."""
        return list(chain(*self.parts))


def measure_generalization(
    ablation: Ablation, tests: GeneralizationTests, features: PairFeatures, progress: Progress
) -> dict[str, Any]:
    """Return accuracy by task and the share of pairs that change sides, with the lead of selected directions.

    `features` are those of all pairs of the tests.
    """
    data = replace(ablation.data, test_pairs=tests.pairs, test_features=features, augmented=None)
    wins: dict[str, dict[str, Float64Array]] = {task: {} for task in tests.tasks}
    flips: dict[str, Float64Array] = {}
    for done, (name, method) in enumerate(METHODS.items()):
        progress("generalization", done / len(METHODS))
        all_wins = compute_wins(ablation, Variant(method, data), ablation.num_pairs)
        parts = iter(_split(all_wins, tests.parts))
        for task in tests.tasks:
            wins[task][name] = next(parts).mean(0)
        before, *after = parts
        flips[name] = np.mean([rewritten != before for rewritten in after], axis=(0, 1))
    progress("generalization", 1.0)
    return {
        "pairs": ablation.num_pairs,
        "seeds": ablation.seeds,
        "accuracy": {
            task: summarise_wins(values, _get_groups(tests.tasks[task])) for task, values in wins.items()
        },
        "flips": summarise_wins(flips, _get_groups(tests.original)),
    }


def _split(wins: Float64Array, parts: list[list[Pair]]) -> list[Float64Array]:
    """Split the columns of wins by the part they belong to."""
    ends = accumulate(map(len, parts), initial=0)
    return [wins[:, start:stop] for start, stop in pairwise(ends)]


def _get_groups(pairs: list[Pair]) -> list[str]:
    return [pair.group for pair in pairs]
