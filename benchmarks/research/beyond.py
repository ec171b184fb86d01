"""What the choice of directions buys beyond the test: elsewhere, and where the same is said otherwise.

The heads are an ablation's. Each is trained once a seed and asked all at once: the test, what people
preferred in other tasks, and a sample of the test after every transform that changes looks and keeps words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from app.evaluate.accuracy import Float64Array
from app.evaluate.audit import paraphrases, robustness
from app.train import variants
from app.train.features import PairFeatures
from app.train.variants import Rival
from app.types import Pair
from benchmarks.research.ablate import Report, Study, Variant, rows, seeded

SAMPLE = 100
WAYS: dict[str, Rival] = {
    "selected directions": variants.selected,
    "random latents of the SAE": variants.random_latents,
    "random directions": variants.random_directions,
    "whole residual": variants.whole_residual,
}


@dataclass(frozen=True, slots=True)
class Questions:
    """Pairs by where they are from, and a sample of the test, plain and by what was done to it."""

    places: Mapping[str, list[Pair]]
    plain: list[Pair]
    changed: Mapping[str, list[Pair]]

    @classmethod
    def of(cls, test: list[Pair], elsewhere: Mapping[str, list[Pair]]) -> "Questions":
        """The test, other tasks' pairs, and a sample of the test said otherwise."""
        plain = robustness.sample_pairs(test, SAMPLE)
        changed = {what: paraphrases.rewrite_pairs(what, plain) for what in paraphrases.REWRITE_NAMES}
        return cls({"this test": test, **elsewhere}, plain, changed)

    @property
    def parts(self) -> list[list[Pair]]:
        """Everything that is asked, in this order."""
        return [*self.places.values(), self.plain, *self.changed.values()]

    @property
    def pairs(self) -> list[Pair]:
        """The parts joined."""
        return list(chain(*self.parts))


def run(study: Study, asked: Questions, read: PairFeatures, report: Report) -> dict[str, Any]:
    """Accuracy by place and the share of pairs that change sides, and how far the selected are ahead.

    `read` is what was read of the questions' pairs.
    """
    arena = replace(study.arena, test=asked.pairs, tested=read, drilled=None)
    accuracy: dict[str, dict[str, Float64Array]] = {place: {} for place in asked.places}
    flips: dict[str, Float64Array] = {}
    for done, (way, rival) in enumerate(WAYS.items()):
        report("beyond the test", done / len(WAYS))
        parts = iter(_split(seeded(study, Variant(rival, arena), study.pairs), asked.parts))
        for place in asked.places:
            accuracy[place][way] = next(parts).mean(0)
        before, *after = parts
        flips[way] = np.mean([won != before for won in after], axis=(0, 1))
    report("beyond the test", 1.0)
    return {
        "pairs": study.pairs,
        "seeds": study.seeds,
        "accuracy": {place: rows(won, _groups(asked.places[place])) for place, won in accuracy.items()},
        "flips": rows(flips, _groups(asked.plain)),
    }


def _split(won: Float64Array, parts: list[list[Pair]]) -> list[Float64Array]:
    """Columns of what was asked at once, by the part they belong to."""
    ends = accumulate(map(len, parts), initial=0)
    return [won[:, start:stop] for start, stop in pairwise(ends)]


def _groups(pairs: list[Pair]) -> list[str]:
    return [pair.group for pair in pairs]
