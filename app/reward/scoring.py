"""Scoring of packed jobs with one reward model, from the residuals of a forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.backbone.attention import RowIndices
from app.backbone.backbone import Residuals
from app.backbone.packing import PackedBatch
from app.backbone.tokenization import ChatTokenizer
from app.reward import explanations
from app.reward.directions import ResponseFeatures
from app.reward.explanations import build_scored_turns
from app.reward.passages import (
    PrefixPassages,
    ResponseSpans,
    build_spans,
    compute_span_weights,
    find_passages,
    mark_sentence_ends,
    rank_passages,
)
from app.reward.pooling import credited_span, mean_pool, pool_prefixes, pooled_span
from app.reward.reward_model import RewardModel
from app.types import (
    AssistantTurn,
    Explain,
    Pooling,
    Profile,
    SaeInput,
    Score,
    ScoredPassage,
    ScoredTurn,
    ScoreJob,
    TokenCredit,
)

MAX_PASSAGES = 3
"""Maximum number of passages in the explanation of a reward."""


@dataclass(frozen=True, slots=True)
class PackedJob:
    """A job and its index in a packed batch."""

    job: ScoreJob
    index: int
    batch: PackedBatch

    @property
    def num_features(self) -> int:
        """Maximum number of features in the explanation."""
        return 0 if self.job.options.explain is Explain.NONE else self.job.options.top_k

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
    """Turns that were pooled and scored: their features, numbers and spans."""

    features: ResponseFeatures
    numbers: list[explanations.RewardNumbers]
    scored_spans: ScoredSpans


def score_with_model(
    name: str,
    model: RewardModel,
    profile: Profile,
    *,
    residuals: Residuals,
    jobs: Sequence[PackedJob],
    tokenizer: ChatTokenizer,
) -> list[Score]:
    """Return the scores of the jobs under a model and a profile, in order."""
    profiles = [explanations.merge_profile(profile, packed.job.options, model) for packed in jobs]
    responses = [
        PackedTurn(packed, packed.job.encoded.response_turn, merged)
        for packed, merged in zip(jobs, profiles, strict=True)
    ]
    features, numbers, scored_spans = pool_turns(model, residuals, responses)
    origin = torch.zeros_like(scored_spans.steered[:1])
    baseline = float(model.head.score_members(origin).mean())
    contributions = scored_spans.sum_by_turn(
        model.head.compute_contributions(scored_spans.steered, origin)
    ).cpu()
    features = ResponseFeatures(*(tensor.cpu() for tensor in features))
    turns = _score_turns(model, residuals, responses, numbers, baseline)
    passages = _list_passages(model, scored_spans, jobs, baseline, tokenizer)
    return [
        Score(
            model=name,
            **numbers[row]._asdict(),
            **_explain(model, packed, contributions[row], features, row),
            baseline=baseline,
            residual=_residual(numbers[row], baseline, contributions[row]),
            steer=merged.steer,
            tokens=_credit_tokens(model, residuals, responses[row], baseline, tokenizer),
            length_control=merged.length_control,
            turns=turns[row],
            passages=passages[row],
        )
        for row, (packed, merged) in enumerate(zip(jobs, profiles, strict=True))
    ]


def pool_turns(model: RewardModel, residuals: Residuals, turns: Sequence[PackedTurn]) -> PooledTurns:
    """Return the features, numbers and spans of turns of packed jobs, each scored with its profile."""
    rows = [packed.pooled_rows(model.card.readout, turn) for packed, turn, _ in turns]
    pooled_residuals, lengths = residuals.at(np.concatenate(rows)), [len(turn_rows) for turn_rows in rows]
    projections = model.dictionary.project(pooled_residuals)
    activations = _encode(model, pooled_residuals, lengths)
    features = ResponseFeatures(mean_pool(projections, lengths), activations)
    profiles = [profile for _, _, profile in turns]
    plain = model.head.standardise(features.projections)
    factors = explanations.build_steering_factors(model, profiles).to(plain.device)
    passages = [find_passages(packed.job.encoded, turn, model.card.passages) for packed, turn, _ in turns]
    scored_spans = _score_spans(model, plain, projections, (lengths, passages), factors)
    numbers = explanations.compute_reward_numbers(
        model,
        plain,
        scored_spans.sum_by_turn(scored_spans.member_rewards),
        [turn for _, turn, _ in turns],
        [profile.length_control for profile in profiles],
    )
    return PooledTurns(features, numbers, scored_spans)


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


def _score_turns(
    model: RewardModel,
    residuals: Residuals,
    responses: Sequence[PackedTurn],
    response_numbers: Sequence[explanations.RewardNumbers],
    baseline: float,
) -> list[tuple[ScoredTurn, ...]]:
    """Return each job's turns with their rewards, the response last; none if they are not requested."""
    earlier = [
        response._replace(turn=turn) for response in responses for turn in response.packed.job.earlier_turns
    ]
    numbers = iter(pool_turns(model, residuals, earlier).numbers if earlier else ())
    scored: list[tuple[ScoredTurn, ...]] = []
    for (packed, response, _), last in zip(responses, response_numbers, strict=True):
        turns = [*((turn, next(numbers)) for turn in packed.job.earlier_turns), (response, last)]
        is_requested = packed.job.options.explain is Explain.TURNS
        scored.append(build_scored_turns(baseline, turns) if is_requested else ())
    return scored


def _list_passages(
    model: RewardModel,
    scored: ScoredSpans,
    jobs: Sequence[PackedJob],
    baseline: float,
    tokenizer: ChatTokenizer,
) -> list[tuple[ScoredPassage, ...]]:
    """Return for each response of more than one passage those with the largest weights."""
    explained = [packed.job.options.explain is not Explain.NONE for packed in jobs]
    if not model.card.passages or not any(explained):
        return [()] * len(jobs)
    ranked = rank_passages(scored.spans, scored.weights, scored.member_rewards.mean(1), baseline)
    listed: list[tuple[ScoredPassage, ...]] = []
    for packed, passages, is_explained in zip(jobs, ranked, explained, strict=True):
        ids = packed.job.encoded.ids[packed.job.encoded.response_start :]
        texts = (
            replace(p, text=tokenizer.decode_text(ids[p.start : p.end])) for p in passages[:MAX_PASSAGES]
        )
        listed.append(tuple(texts) if is_explained and len(passages) > 1 else ())
    return listed


def _residual(numbers: explanations.RewardNumbers, baseline: float, contributions: Tensor) -> float:
    """Return the rounding error of the explanation: the reward minus everything that explains it."""
    return numbers.reward - baseline - float(contributions.sum()) - numbers.length_correction


def _explain(
    model: RewardModel, packed: PackedJob, contributions: Tensor, features: ResponseFeatures, row: int
) -> dict[str, Any]:
    """Return the fields of `Score` that explain a reward by features and clusters."""
    with_clusters = packed.job.options.clusters
    return {
        "features": explanations.select_top_contributions(
            model, contributions, features, row, packed.num_features
        ),
        "clusters": explanations.sum_clusters(model, contributions) if with_clusters else (),
        "projections": features.projections[row].numpy(),
        "activations": features.activations[row].numpy(),
        "contributions": contributions.numpy(),
    }


def _credit_tokens(
    model: RewardModel,
    residuals: Residuals,
    response: PackedTurn,
    baseline: float,
    tokenizer: ChatTokenizer,
) -> tuple[TokenCredit, ...] | None:
    """Return how much each response token changed the reward so far, or None if not requested."""
    packed, turn, profile = response
    if packed.job.options.explain is not Explain.TOKENS:
        return None
    pooling = model.card.readout
    projections = model.dictionary.project(residuals.at(packed.credited_rows(pooling)))
    factors = explanations.build_steering_factors(model, [profile]).to(projections.device)

    def compute_rewards(pooled: Tensor) -> Tensor:
        return model.head.score_members(model.head.standardise(pooled) * factors).mean(1)

    prefix_rewards = compute_rewards(pool_prefixes(pooling, projections))
    if model.card.passages:
        marks = mark_sentence_ends(packed.job.encoded, turn)
        passages = PrefixPassages.from_sentences(marks, projections.device)
        closed, opened = (compute_rewards(pooled) for pooled in passages.pool(projections))
        prefix_rewards = passages.combine(prefix_rewards, closed, opened, model.card.passages)
    rewards = prefix_rewards.tolist()
    changes = [after - before for before, after in zip([baseline, *rewards], rewards, strict=False)]
    start, end = credited_span(pooling, turn)
    texts = tokenizer.decode(packed.job.encoded.ids[start:end])
    return tuple(TokenCredit(text, credit) for text, credit in zip(texts, changes, strict=True))
