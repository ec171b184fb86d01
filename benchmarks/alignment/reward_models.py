"""The reward models of the experiment, made from one half of the training prompts, and the gold one.

The gold reward is a head over whole residuals taught by the other half, so it shares a backbone with the
others but no pair and no prompt.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from app.align.labelling import LabelledPair
from app.align.loop import MarginFunction
from app.align.reward_functions import ItemReward, RewardFunction
from app.data.pairs import hash_to_unit_interval
from app.reward.head import Head
from app.reward.reward_model import TrainingData
from app.train import features, head_training, pipeline
from app.train.feature_cache import TensorCache
from app.types import Item, Pair, Pooling
from benchmarks.alignment.presets import Preset
from benchmarks.research import standard_rm as standard

Report = Callable[[str, float], None]
READOUT = Pooling.MEAN
HALF = 0.5
NOBODY = TrainingData("", "", 0, "")


@dataclass(frozen=True, slots=True)
class Reward:
    """A head over projections of pooled residuals."""

    head: Head
    basis: Tensor

    def of(self, vectors: Tensor) -> Tensor:
        """Rewards of (N, M, D) vectors, (N, M)."""
        known = self.head.standardise((vectors @ self.basis.T).flatten(0, 1))
        return self.head.score_members(known).mean(1).reshape(vectors.shape[:2])


class Jury:
    """Everybody who judges; each is made when it is first asked."""

    def __init__(
        self,
        pairs: list[Pair],
        preset: Preset,
        reader: features.FeatureExtractor,
        llm: Path,
        cache: Path,
        report: Report,
    ) -> None:
        self.preset, self._reader, self._llm = preset, reader, llm
        self._cache, self._report = cache, report
        halves: dict[bool, list[Pair]] = {True: [], False: []}
        for pair in pairs:
            halves[hash_to_unit_interval(f"half/{pair.group}") < HALF].append(pair)
        self.learnt, self.others = halves[True][: preset.learnt], halves[False]

    @cached_property
    def sparse(self) -> Reward:
        """The method."""
        found = self._lesson
        return Reward(found.head, found.dictionary.directions)

    @cached_property
    def dense(self) -> Reward:
        """The same head over the whole residual."""
        return self._whole(self.learnt)

    @cached_property
    def gold(self) -> Reward:
        """The same, from the pairs that no other has seen."""
        return self._whole(self.others[: self.preset.gold])

    def scorer(self, which: Callable[[], Reward]) -> RewardFunction:
        """Rewards of exchanges."""

        def scored(exchanges: Sequence[Item]) -> list[ItemReward]:
            vectors = self._vectors([(one,) for one in exchanges], "rewards")
            return [ItemReward(float(reward)) for reward in which().of(vectors)[:, 0]]

        return scored

    def margins(self, reward: Reward, pairs: Sequence[Pair]) -> Tensor:
        """Reward of the preferred response minus that of the other."""
        found = reward.of(self._vectors([pair.items for pair in pairs], "pairs"))
        return found[:, 0] - found[:, 1]

    def standard(self, pairs: Sequence[Pair]) -> Tensor:
        """The same by a fine-tuned StandardRM, made once and kept."""
        taught, plan = self.learnt[: self.preset.standard], standard.StandardPlan(self.preset.standard_epochs)
        text = self._reader.text
        key = hashlib.sha256(repr((str(self._llm), text.template_sha256, plan, taught)).encode()).hexdigest()[
            :16
        ]
        home = self._cache / "standard" / key
        home.mkdir(parents=True, exist_ok=True)
        clock = standard.Clock(home / "spent.json")
        model = standard.trained(self._llm, text, taught, plan, clock, self._report)
        return standard.margins(model, text, list(pairs), TensorCache(home / "margins.sqlite"), self._report)

    @cached_property
    def _lesson(self) -> pipeline.Learnt:
        order = pipeline.TrainingConfig("", self.learnt, NOBODY, [], "", READOUT, self.preset.k)
        seen = pipeline.table(self.learnt, self._reader, self._cache, "learnt pairs", self._report)
        return pipeline.learn(order, self.learnt, seen, None, self._reader, self._report)

    def _whole(self, pairs: list[Pair]) -> Reward:
        vectors = self._vectors([pair.items for pair in pairs], "pairs")
        basis = torch.eye(vectors.shape[2])
        lesson = head_training.TrainingSet.from_vectors(vectors, basis, [pair.group for pair in pairs])
        return Reward(head_training.fit_head(lesson, self._lesson.plan, lambda _: None), basis)

    def _vectors(self, rows: Sequence[tuple[Item, ...]], what: str) -> Tensor:
        count = len({one for row in rows for one in row})
        found = features.extract_features(
            rows, self._reader, self._cache, lambda done: self._report(what, done / count)
        )
        return found.pooled_residuals(self._reader.layers[0], READOUT)


def sieve(margins: Callable[[Sequence[Pair]], Tensor]) -> MarginFunction:
    """Whoever has margins of pairs as a filter of a round."""

    def sieved(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        asked = [Pair(one.messages, one.chosen.response, one.rejected.response, "") for one in pairs]
        return [float(margin) for margin in margins(asked)]

    return sieved
