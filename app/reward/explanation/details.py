"""The details of rewards that requests ask for: features, concepts, tokens, passages and a sentence."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from app.backbone.backbone import Residuals
from app.backbone.tokenization import ChatTokenizer
from app.reward.explanation.concepts import add_phrases, compute_coverage, sum_concepts
from app.reward.explanation.contributions import build_steering_factors, select_top_contributions
from app.reward.explanation.tokens import compute_prefix_credits, split_contributions
from app.reward.explanation.why import describe_reward
from app.reward.passages import rank_passages
from app.reward.pooled_turns import PackedTurn, PooledTurns
from app.reward.pooling import credited_span
from app.reward.reward_model import RewardModel
from app.scores import Score, ScoredPassage, TokenCredit
from app.types import Explain, Pooling

MAX_PASSAGES = 3
"""Maximum number of passages in the explanation of a reward."""


def explain_responses(
    model: RewardModel,
    residuals: Residuals,
    turns: Sequence[PackedTurn],
    pooled: PooledTurns,
    scores: list[Score],
    tokenizer: ChatTokenizer,
) -> list[Score]:
    """Return the scores with the details that their jobs ask for; those that ask for none are unchanged."""
    modes = [turn.packed.job.options.explain for turn in turns]
    if all(mode is Explain.NONE for mode in modes):
        return scores
    is_split = model.card.readout is Pooling.MEAN and (model.concepts or Explain.TOKENS in modes)
    split = _split_by_token(model, pooled) if is_split else [None] * len(turns)
    passages = _list_passages(model, pooled, turns, scores, tokenizer)
    explained = []
    for row, (mode, turn, score, token_credits) in enumerate(zip(modes, turns, scores, split, strict=True)):
        if mode is Explain.NONE:
            explained.append(score)
            continue
        detailed = replace(score, passages=passages[row])
        texts = _decode_credited_tokens(model, turn, tokenizer)
        detailed = _add_features(model, turn, detailed, token_credits)
        detailed = _add_concepts(model, turn, detailed, texts, token_credits)
        if mode is Explain.TOKENS:
            shares = (
                _compute_prefix_credits(model, residuals, turn, score.baseline)
                if token_credits is None
                else token_credits.sum(1).tolist()
            )
            detailed = replace(
                detailed, tokens=tuple(TokenCredit(*pair) for pair in zip(texts, shares, strict=True))
            )
        explained.append(replace(detailed, why=describe_reward(detailed, model.card.domain)))
    return explained


def _split_by_token(model: RewardModel, pooled: PooledTurns) -> list[Tensor]:
    """Return the shares of each response's tokens in its contributions, (T, K) each, on the CPU."""
    spans = pooled.scored_spans
    shares = split_contributions(
        model.head, spans.spans, spans.weights, spans.steered, pooled.token_inputs(model)
    )
    return list(torch.split(shares.cpu(), list(spans.spans.token_counts)))


def _add_features(model: RewardModel, turn: PackedTurn, score: Score, token_credits: Tensor | None) -> Score:
    options = turn.packed.job.options
    shares = token_credits if options.explain is Explain.TOKENS else None
    top = select_top_contributions(
        model, score.contributions, score.projections, score.activations, options.top_k, shares
    )
    return replace(score, features=top)


def _add_concepts(
    model: RewardModel, turn: PackedTurn, score: Score, texts: list[str], token_credits: Tensor | None
) -> Score:
    """Return the score with concepts and coverage; a read-out of one token has no phrases."""
    concepts = sum_concepts(model, score.contributions, score.model)
    if token_credits is not None and model.concepts:
        concepts = add_phrases(
            model, concepts, texts, token_credits.numpy() @ model.concept_membership,
            with_credits=turn.packed.job.options.explain is Explain.TOKENS,
        )  # fmt: skip
    return replace(score, concepts=concepts, coverage=compute_coverage(model, score.contributions))


def _decode_credited_tokens(model: RewardModel, turn: PackedTurn, tokenizer: ChatTokenizer) -> list[str]:
    start, end = credited_span(model.card.readout, turn.turn)
    return tokenizer.decode(turn.packed.job.encoded.ids[start:end])


def _compute_prefix_credits(
    model: RewardModel, residuals: Residuals, turn: PackedTurn, baseline: float
) -> list[float]:
    """Return by how much each token changes the reward, for a read-out of one token."""
    projections = model.dictionary.project(residuals.at(turn.packed.credited_rows(model.card.readout)))
    factors = build_steering_factors(model, [turn.profile]).to(projections.device)
    rewards = model.head.score_members(model.head.standardise(projections) * factors).mean(1)
    return compute_prefix_credits(baseline, rewards.tolist())


def _list_passages(
    model: RewardModel,
    pooled: PooledTurns,
    turns: Sequence[PackedTurn],
    scores: Sequence[Score],
    tokenizer: ChatTokenizer,
) -> list[tuple[ScoredPassage, ...]]:
    """Return for each response of more than one passage those with the largest weights."""
    if not model.card.passages:
        return [()] * len(turns)
    spans = pooled.scored_spans
    ranked = rank_passages(spans.spans, spans.weights, spans.member_rewards.mean(1), scores[0].baseline)
    listed: list[tuple[ScoredPassage, ...]] = []
    for (packed, _, _), passages in zip(turns, ranked, strict=True):
        ids = packed.job.encoded.ids[packed.job.encoded.response_start :]
        is_listed = packed.job.options.explain is not Explain.NONE and len(passages) > 1
        texts = (
            replace(p, text=tokenizer.decode_text(ids[p.start : p.end]))
            for p in passages[: MAX_PASSAGES * is_listed]
        )
        listed.append(tuple(texts))
    return listed
