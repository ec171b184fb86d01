"""Scoring of packed jobs with one reward model, from the residuals of a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.backbone.attention import RowIndices
from app.backbone.backbone import Residuals
from app.backbone.packing import PackedBatch
from app.reward import explanations
from app.reward.directions import ResponseFeatures, compute_response_features
from app.reward.pooling import credited_span, pool_prefixes, pooled_span
from app.reward.reward_model import RewardModel
from app.reward.turns import build_scored_turns
from app.types import AssistantTurn, Explain, Pooling, Profile, Score, ScoredTurn, ScoreJob, TokenCredit


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


class PooledTurns(NamedTuple):
    """Turns that were pooled and scored: their features, steered projections (B, K) and numbers."""

    features: ResponseFeatures
    steered: Tensor
    numbers: list[explanations.RewardNumbers]


def score_with_model(
    name: str,
    model: RewardModel,
    profile: Profile,
    *,
    residuals: Residuals,
    jobs: Sequence[PackedJob],
    decode: Callable[[Sequence[int]], list[str]],
) -> list[Score]:
    """Return the scores of the jobs under a model and a profile, in order."""
    profiles = [explanations.merge_profile(profile, packed.job.options, model) for packed in jobs]
    responses = [
        PackedTurn(packed, packed.job.encoded.response_turn, merged)
        for packed, merged in zip(jobs, profiles, strict=True)
    ]
    features, steered, numbers = pool_turns(model, residuals, responses)
    origin = torch.zeros_like(steered[:1])
    baseline = float(model.head.score_members(origin).mean())
    contributions = model.head.compute_contributions(steered, origin).cpu()
    features = ResponseFeatures(*(tensor.cpu() for tensor in features))
    turns = _score_turns(model, residuals, responses, numbers, baseline)
    return [
        Score(
            model=name,
            **numbers[row]._asdict(),
            **_explain(model, packed, contributions[row], features, row),
            baseline=baseline,
            residual=_residual(numbers[row], baseline, contributions[row]),
            steer=merged.steer,
            tokens=_credit_tokens(model, residuals, responses[row], baseline, decode),
            length_control=merged.length_control,
            turns=turns[row],
        )
        for row, (packed, merged) in enumerate(zip(jobs, profiles, strict=True))
    ]


def pool_turns(model: RewardModel, residuals: Residuals, turns: Sequence[PackedTurn]) -> PooledTurns:
    """Pool turns of packed jobs and score each of them with its profile."""
    rows = [packed.pooled_rows(model.card.readout, turn) for packed, turn, _ in turns]
    features = compute_response_features(
        model.dictionary, residuals.at(np.concatenate(rows)), [len(turn_rows) for turn_rows in rows]
    )
    profiles = [profile for _, _, profile in turns]
    plain = model.head.standardise(features.projections)
    steered = plain * explanations.build_steering_factors(model, profiles).to(plain.device)
    length_control = [profile.length_control for profile in profiles]
    spans = [turn for _, turn, _ in turns]
    numbers = explanations.compute_reward_numbers(model, plain, steered, spans, length_control)
    return PooledTurns(features, steered, numbers)


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
    }


def _credit_tokens(
    model: RewardModel,
    residuals: Residuals,
    response: PackedTurn,
    baseline: float,
    decode: Callable[[Sequence[int]], list[str]],
) -> tuple[TokenCredit, ...] | None:
    """Return how much each response token changed the reward so far, or None if not requested."""
    packed, turn, profile = response
    if packed.job.options.explain is not Explain.TOKENS:
        return None
    pooling = model.card.readout
    projections = model.dictionary.project(residuals.at(packed.credited_rows(pooling)))
    factors = explanations.build_steering_factors(model, [profile]).to(projections.device)
    x = model.head.standardise(pool_prefixes(pooling, projections)) * factors
    rewards = model.head.score_members(x).mean(1).tolist()
    changes = [after - before for before, after in zip([baseline, *rewards], rewards, strict=False)]
    start, end = credited_span(pooling, turn)
    texts = decode(packed.job.encoded.ids[start:end])
    return tuple(TokenCredit(text, credit) for text, credit in zip(texts, changes, strict=True))
