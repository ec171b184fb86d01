"""Turns of packed jobs, pooled and scored with one reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.backbone.attention import RowIndices
from app.backbone.backbone import Residuals
from app.backbone.packing import PackedBatch
from app.reward.directions import ResponseFeatures
from app.reward.explanation import contributions
from app.reward.passages import ResponseSpans, build_spans, compute_span_weights, find_passages
from app.reward.pooling import credited_span, mean_pool, pooled_span
from app.reward.reward_model import RewardModel
from app.types import AssistantTurn, Explain, Pooling, Profile, SaeInput, ScoreJob


@dataclass(frozen=True, slots=True)
class PackedJob:
    """A job and its index in a packed batch."""

    job: ScoreJob
    index: int
    batch: PackedBatch

    def pooled_rows(self, pooling: Pooling, turn: AssistantTurn) -> RowIndices:
        """Return the rows of a turn that are pooled."""
        return self.batch.rows(self.index, *pooled_span(pooling, turn))

    def credited_rows(self, pooling: Pooling) -> RowIndices:
        """Return the rows of the tokens that get credit. They include the pooled rows of the response."""
        return self.batch.rows(self.index, *credited_span(pooling, self.job.encoded.response_turn))

    def required_rows(self, pooling: Pooling) -> RowIndices:
        """Return the rows whose residuals the job needs."""
        if self.job.options.explain is Explain.TOKENS:
            return self.credited_rows(pooling)
        turns = (*self.job.earlier_turns, self.job.encoded.response_turn)
        return np.concatenate([self.pooled_rows(pooling, turn) for turn in turns])


def first_read_token(job: ScoreJob) -> int:
    """Return the first token whose residual may be read; tokens before it may come from the prefix cache."""
    return next((turn.start for turn in job.earlier_turns), job.encoded.response_start)


class PackedTurn(NamedTuple):
    """A turn of a packed job, and the profile that it is scored with."""

    packed: PackedJob
    turn: AssistantTurn
    profile: Profile


class ScoredSpans(NamedTuple):
    """The spans of a batch of turns: their weights (W), steered projections (W, K) and rewards (W, E).

    Without passages, the spans are the whole turns, each with weight 1.
    """

    spans: ResponseSpans
    weights: Tensor
    steered: Tensor
    member_rewards: Tensor

    def sum_by_turn(self, values: Tensor) -> Tensor:
        """Return the weighted sum of the spans' values (W, N) for each turn, (B, N)."""
        return self.spans.sum_by_response(self.weights, values)


class PooledTurns(NamedTuple):
    """Turns that were pooled and scored: their features, numbers and spans.

    `token_projections` (T, K) are those of the pooled tokens of all turns, concatenated; `factors` (B, K)
    steer them.
    """

    features: ResponseFeatures
    numbers: list[contributions.RewardNumbers]
    scored_spans: ScoredSpans
    token_projections: Tensor
    factors: Tensor

    def token_inputs(self, model: RewardModel) -> Tensor:
        """Return the standardised and steered projections of the pooled tokens, (T, K)."""
        counts = torch.tensor(self.scored_spans.spans.token_counts, device=self.factors.device)
        return model.head.standardise(self.token_projections) * self.factors.repeat_interleave(counts, dim=0)


def pool_turns(model: RewardModel, residuals: Residuals, turns: Sequence[PackedTurn]) -> PooledTurns:
    """Return the features, numbers and spans of turns of packed jobs, each scored with its profile."""
    rows = [packed.pooled_rows(model.card.readout, turn) for packed, turn, _ in turns]
    pooled_residuals, lengths = residuals.at(np.concatenate(rows)), [len(turn_rows) for turn_rows in rows]
    projections = model.dictionary.project(pooled_residuals)
    activations = _encode(model, pooled_residuals, lengths)
    features = ResponseFeatures(mean_pool(projections.double(), lengths), activations)
    profiles = [profile for _, _, profile in turns]
    plain = model.head.standardise(features.projections)
    factors = contributions.build_steering_factors(model, profiles).to(plain.device)
    passages = [find_passages(packed.job.encoded, turn, model.card.passages) for packed, turn, _ in turns]
    scored_spans = _score_spans(model, plain, projections, (lengths, passages), factors)
    numbers = contributions.compute_reward_numbers(
        model,
        plain,
        scored_spans.sum_by_turn(scored_spans.member_rewards),
        [turn for _, turn, _ in turns],
        [profile.length_control for profile in profiles],
    )
    return PooledTurns(features, numbers, scored_spans, projections, factors)


def _encode(model: RewardModel, residuals: Tensor, lengths: list[int]) -> Tensor:
    """Return the activations of each turn, (B, K), from the residuals (T, D) of all turns' pooled tokens."""
    if model.card.sae_input is SaeInput.RESPONSES:
        return model.dictionary.encode(mean_pool(residuals, lengths))
    return mean_pool(model.dictionary.encode(residuals), lengths)


def _score_spans(
    model: RewardModel,
    plain: Tensor,
    projections: Tensor,
    extents: tuple[list[int], list[list[tuple[int, int]]]],
    factors: Tensor,
) -> ScoredSpans:
    """Return the whole turns and their passages with their rewards and weights.

    `plain` (B, K) are the standardised projections of the whole turns, `projections` (T, K) the projections
    of their tokens, concatenated and not standardised; `extents` are the lengths of the turns and their
    passages; `factors` (B, K) steer them.
    """
    reading, (lengths, passages) = model.card.passages, extents
    spans = build_spans(lengths, passages, plain.device)
    x = plain
    if len(spans.starts) > len(lengths):
        x = torch.cat([plain, model.head.standardise(spans.pool_passages(projections))])
    steered = x * factors[spans.response_index]
    member_rewards = model.head.score_members(steered)
    weights = compute_span_weights(spans, member_rewards.mean(1), reading)
    return ScoredSpans(spans, weights, steered, member_rewards)
