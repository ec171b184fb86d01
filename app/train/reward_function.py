"""Rewards of extracted responses: what a trained model computes, from the features of its training run."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from app.reward.head import Head
from app.reward.passages import PassageReading, ResponseSpans, build_spans, compute_span_weights
from app.reward.reward_model import RewardModel
from app.train.features import POOLINGS, PairFeatures
from app.train.head.common import MIN_SCALE
from app.train.passage_features import project_passages
from app.types import Pooling

CPU = torch.device("cpu")


class SpanRewards(NamedTuple):
    """The spans of the responses of some pairs, their rewards (W,), and each pair's responses (N, 2)."""

    spans: ResponseSpans
    rewards: Tensor
    response_index: Tensor

    def combine(self, reading: PassageReading | None) -> Tensor:
        """Return the rewards of the pairs' responses under a reading, (N, 2); None reads no passages."""
        if reading is None:
            return self.rewards[: self.spans.num_responses][self.response_index]
        weights = compute_span_weights(self.spans, self.rewards, reading)
        return self.spans.sum_by_response(weights, self.rewards[:, None])[:, 0][self.response_index]


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A head on directions (K, D) of the pooled residuals of a layer, and how it reads passages."""

    directions: Tensor
    head: Head
    layer: int
    pooling: Pooling
    passages: PassageReading | None = None

    @classmethod
    def from_model(cls, model: RewardModel) -> "RewardFunction":
        """Return what a model computes."""
        card = model.card
        return cls(model.dictionary.directions.cpu(), model.head, card.layer, card.readout, card.passages)

    def project(self, features: PairFeatures) -> Tensor:
        """Return the standardised projections of pairs, (N, 2, K)."""
        return self.project_residuals(features.pooled_residuals(self.layer, self.pooling))

    def project_residuals(self, residuals: Tensor) -> Tensor:
        """Return the standardised projections of residuals (..., D), pooled or of single tokens, (..., K)."""
        return self.head.standardise(residuals @ self.directions.T)

    def compute_rewards(self, features: PairFeatures) -> Tensor:
        """Return the rewards of pairs, the mean of the ensemble, (N, 2)."""
        return self.score_spans(features, with_passages=self.passages is not None).combine(self.passages)

    def score_spans(self, features: PairFeatures, *, with_passages: bool) -> SpanRewards:
        """Return the rewards of the whole responses and of their passages."""
        used, inverse = torch.unique(features.response_index, return_inverse=True)
        counts = features.token_counts[used].tolist()
        whole = features.residuals[self.layer][used, POOLINGS.index(self.pooling)] @ self.directions.T
        passages = [features.passages[i] for i in used.tolist()] if with_passages else []
        projections = torch.cat([whole, project_passages(passages, self.directions)])
        extents = [[(int(a), int(b)) for a, b in passage["spans"]] for passage in passages]
        return SpanRewards(build_spans(counts, extents, CPU), self._score(projections), inverse)

    def with_passages(self, reading: PassageReading | None, features: PairFeatures) -> "RewardFunction":
        """Return the same function with a reading, standardised again to mean 0 and standard deviation 1.

        `features` are of the pairs whose responses are standardised. The sharpness grows with the scale, so
        that the weights of the spans stay the same.
        """
        if reading is None:
            return self
        rewards = replace(self, passages=reading).compute_rewards(features)
        mean, std = rewards.mean(), rewards.std().clamp(min=MIN_SCALE)
        head = replace(self.head, w2=self.head.w2 / std, b2=(self.head.b2 - mean) / std)
        return replace(self, head=head, passages=replace(reading, sharpness=reading.sharpness * float(std)))

    def _score(self, projections: Tensor) -> Tensor:
        return self.head.score_members(self.head.standardise(projections)).mean(1)
