"""The reward models of the experiment, trained on one half of the training prompts, and the gold model.

The gold reward is a head over whole residuals trained on the other half, so it shares the backbone with the
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
from app.train import features, steps
from app.train.feature_cache import TensorCache
from app.train.head.fitting import fit_head
from app.train.head.network import NetworkHeadConfig
from app.train.head.training_set import TrainingSet
from app.train.selection import LatentSource
from app.types import Item, Pair, Pooling, Progress, SaeInput
from benchmarks.alignment.presets import Preset
from benchmarks.research import standard_rm

POOLING = Pooling.MEAN
TRAINING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class LinearReward:
    """A head over projections of pooled residuals onto `basis`."""

    head: Head
    basis: Tensor

    def score(self, vectors: Tensor) -> Tensor:
        """The rewards (N, M) of pooled residuals (N, M, D)."""
        inputs = self.head.standardise((vectors @ self.basis.T).flatten(0, 1))
        return self.head.score_members(inputs).mean(1).reshape(vectors.shape[:2])


class RewardModels:
    """All reward models of the experiment; each is trained on first use.

    `training_pairs` train the models that are compared; `other_pairs` train the gold model and give the
    prompts.
    """

    def __init__(
        self,
        pairs: list[Pair],
        preset: Preset,
        extractor: features.FeatureExtractor,
        llm: Path,
        cache: Path,
        progress: Progress,
    ) -> None:
        self.preset, self._extractor, self._llm = preset, extractor, llm
        self._cache, self._progress = cache, progress
        halves: dict[bool, list[Pair]] = {True: [], False: []}
        for pair in pairs:
            halves[hash_to_unit_interval(f"half/{pair.group}") < TRAINING_SHARE].append(pair)
        self.training_pairs, self.other_pairs = halves[True][: preset.learnt], halves[False]

    @cached_property
    def sparse(self) -> LinearReward:
        """SparseRM: a head over the selected directions."""
        trained, directions = self._trained
        return LinearReward(trained.reward_function.head, directions.dictionary.directions)

    @cached_property
    def dense(self) -> LinearReward:
        """DenseRM: the same head over the whole residual."""
        return self._train_dense(self.training_pairs)

    @cached_property
    def gold(self) -> LinearReward:
        """The gold reward: a DenseRM trained on pairs that no other model has seen."""
        return self._train_dense(self.other_pairs[: self.preset.gold])

    def make_reward_function(self, get_model: Callable[[], LinearReward]) -> RewardFunction:
        """A function that scores items; the model is trained on the first call."""

        def score_items(items: Sequence[Item]) -> list[ItemReward]:
            vectors = self._pool_residuals([(item,) for item in items], "rewards")
            return [ItemReward(float(reward)) for reward in get_model().score(vectors)[:, 0]]

        return score_items

    def score_margins(self, model: LinearReward, pairs: Sequence[Pair]) -> Tensor:
        """The reward of each preferred response minus that of the rejected one."""
        rewards = model.score(self._pool_residuals([pair.items for pair in pairs], "pairs"))
        return rewards[:, 0] - rewards[:, 1]

    def score_standard_rm_margins(self, pairs: Sequence[Pair]) -> Tensor:
        """The margins of a fine-tuned StandardRM, which is trained once and cached."""
        training_pairs = self.training_pairs[: self.preset.standard]
        config = standard_rm.StandardRMConfig(self.preset.standard_epochs)
        tokenizer = self._extractor.tokenizer
        inputs = (str(self._llm), tokenizer.template_sha256, config, training_pairs)
        key = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
        folder = self._cache / "standard" / key
        folder.mkdir(parents=True, exist_ok=True)
        clock = standard_rm.TrainingClock(folder / "spent.json")
        model = standard_rm.train_standard_rm(
            self._llm, tokenizer, training_pairs, config, clock, self._progress
        )
        cache = TensorCache(folder / "margins.sqlite")
        return standard_rm.score_margins(model, tokenizer, list(pairs), cache, self._progress)

    @cached_property
    def _trained(self) -> tuple[steps.TrainedHead, steps.DirectionSet]:
        if self._extractor.dictionary is None:
            raise ValueError("the experiment needs an SAE of tokens")
        extracted = steps.extract(
            self.training_pairs, self._extractor, self._cache, self._progress, stage="training pairs"
        )
        config = NetworkHeadConfig()
        layer, dictionary = self._extractor.layer, self._extractor.dictionary
        source = LatentSource(dictionary, SaeInput.TOKENS, layer, POOLING)
        _, directions = steps.select(extracted, source, self.preset.k, config.seed)
        return steps.train_head(extracted, directions, config, self._progress), directions

    def _train_dense(self, pairs: list[Pair]) -> LinearReward:
        vectors = self._pool_residuals([pair.items for pair in pairs], "pairs")
        identity = torch.eye(vectors.shape[2])
        groups = [pair.group for pair in pairs]
        training_set = TrainingSet.from_vectors(vectors, identity, groups)
        head = fit_head(training_set, self._trained[0].config, lambda _: None)
        return LinearReward(head, identity)

    def _pool_residuals(self, rows: Sequence[tuple[Item, ...]], stage: str) -> Tensor:
        """The pooled residuals (N, M, D) of N rows of M items."""
        count = len({item for row in rows for item in row})
        extracted = features.extract_features(
            rows, self._extractor, self._cache, lambda done: self._progress(stage, done / count)
        )
        return extracted.pooled_residuals(self._extractor.layers[0], POOLING)


def make_margin_filter(score_margins: Callable[[Sequence[Pair]], Tensor]) -> MarginFunction:
    """A filter of labelled pairs by the margins of a reward model."""

    def filter_margins(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        preference_pairs = [
            Pair(pair.messages, pair.chosen.response, pair.rejected.response, "") for pair in pairs
        ]
        return [float(margin) for margin in score_margins(preference_pairs)]

    return filter_margins
