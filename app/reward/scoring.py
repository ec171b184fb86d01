"""Scoring of packed jobs with one reward model, from the residuals of a forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.backbone.backbone import Residuals
from app.backbone.tokenization import ChatTokenizer
from app.reward.directions import ResponseFeatures
from app.reward.explanation.contributions import RewardNumbers, build_scored_turns, merge_profile
from app.reward.explanation.details import explain_responses
from app.reward.pooled_turns import PackedJob, PackedTurn, pool_turns
from app.reward.reward_model import RewardModel
from app.scores import Score, ScoredTurn
from app.types import Explain, Profile


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
    profiles = [merge_profile(profile, packed.job.options, model) for packed in jobs]
    responses = [
        PackedTurn(packed, packed.job.encoded.response_turn, merged)
        for packed, merged in zip(jobs, profiles, strict=True)
    ]
    pooled = pool_turns(model, residuals, responses)
    spans = pooled.scored_spans
    origin = torch.zeros_like(spans.steered[:1])
    baseline = float(model.head.score_members(origin).mean())
    contributions = spans.sum_by_turn(model.head.compute_contributions(spans.steered, origin)).cpu()
    features = ResponseFeatures(*(tensor.float().cpu() for tensor in pooled.features))
    turns = _score_turns(model, residuals, responses, pooled.numbers, baseline)
    scores = [
        Score(
            model=name,
            **numbers._asdict(),
            baseline=baseline,
            residual=_residual(numbers, baseline, contributions[row]),
            steer=merged.steer,
            length_control=merged.length_control,
            turns=turns[row],
            projections=features.projections[row].numpy(),
            activations=features.activations[row].numpy(),
            contributions=contributions[row].numpy(),
        )
        for row, (numbers, merged) in enumerate(zip(pooled.numbers, profiles, strict=True))
    ]
    return explain_responses(model, residuals, responses, pooled, scores, tokenizer)


def _score_turns(
    model: RewardModel,
    residuals: Residuals,
    responses: Sequence[PackedTurn],
    response_numbers: Sequence[RewardNumbers],
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


def _residual(numbers: RewardNumbers, baseline: float, contributions: Tensor) -> float:
    """Return the rounding error of the explanation: the reward minus everything that explains it."""
    return numbers.reward - baseline - float(contributions.sum()) - numbers.length_correction
