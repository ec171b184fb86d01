"""Numbers of a reward and what they consist of: steering factors, contributions of features, turns."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from app.reward.pooling import pooled_span
from app.reward.reward_model import RewardModel
from app.scores import Contribution, DoubleArray, FloatArray, Score, ScoredTurn
from app.types import AssistantTurn, Profile, ScoreOptions

MAX_CREDITED_FEATURES = 10
"""Features whose shares of tokens are listed, so that the size of an answer is bounded."""


class RewardNumbers(NamedTuple):
    """The numbers of one turn; the names are those of `Score`."""

    reward: float
    uncertainty: float
    percentile: float
    distance: float
    length_correction: float


def merge_profile(profile: Profile, options: ScoreOptions, model: RewardModel) -> Profile:
    """Return the profile with the options of a request on top; ignore steering of other models' features."""
    requested = {key: factor for key, factor in options.steer.items() if model.find_directions(key)}
    steer = {**profile.steer, **requested}
    return replace(profile, steer=steer, length_control=profile.length_control or options.length_control)


def build_steering_factors(model: RewardModel, profiles: Sequence[Profile]) -> Tensor:
    """Return the factor of each standardised projection, (B, K): 1 if it is not steered, 0 removes it."""
    factors = torch.ones(len(profiles), len(model.features), dtype=torch.float64)
    for row, profile in enumerate(profiles):
        for key, factor in profile.steer.items():
            factors[row, model.find_directions(key)] = factor
    return factors


def compute_reward_numbers(
    model: RewardModel,
    plain: Tensor,
    member_rewards: Tensor,
    turns: Sequence[AssistantTurn],
    length_control: Sequence[bool],
) -> list[RewardNumbers]:
    """Return the numbers of each turn, from its rewards under the ensemble's members (B, E).

    The distance uses the standardised projections `plain` (B, K), which are not steered, because steering
    does not change how unusual a turn is.
    """
    turn_tokens = torch.tensor([turn.end - turn.start for turn in turns], device=plain.device)
    spans = [pooled_span(model.card.readout, turn) for turn in turns]
    pooled_tokens = torch.tensor([end - start for start, end in spans], device=plain.device)
    length_controlled = torch.tensor(length_control, device=plain.device)
    length_correction = model.calibration.compute_length_correction(turn_tokens) * length_controlled
    rewards = member_rewards.mean(1) + length_correction
    columns = (
        rewards,
        member_rewards.std(1, correction=0),
        model.calibration.compute_percentile(rewards, length_controlled),
        model.calibration.compute_distance(plain, pooled_tokens, turn_tokens),
        length_correction,
    )
    return [RewardNumbers(*row) for row in torch.stack(columns, dim=1).tolist()]


def select_top_contributions(
    model: RewardModel,
    contributions: DoubleArray,
    projections: FloatArray,
    activations: FloatArray,
    count: int,
    token_credits: Tensor | None = None,
) -> tuple[Contribution, ...]:
    """Return the `count` largest contributions by size, from those of all directions, (K,) each.

    `token_credits` (T, K) are the shares of the response's tokens, if they were requested. Only the first
    MAX_CREDITED_FEATURES have them.
    """
    if not count:
        return ()
    top = torch.from_numpy(contributions).abs().topk(min(count, len(contributions))).indices.numpy()
    credited = (
        [] if token_credits is None else token_credits.numpy()[:, top[:MAX_CREDITED_FEATURES]].T.tolist()
    )
    columns = (contributions, projections, activations)
    rows = list(zip(*(column[top].tolist() for column in columns), strict=True))
    return tuple(
        Contribution(
            model=model.card.name,
            feature=model.features[k],
            contribution=contribution,
            projection=projection,
            activation=activation,
            fired=activation != 0,
            credits=tuple(credited[i]) if i < len(credited) else (),
        )
        for i, (k, (contribution, projection, activation)) in enumerate(zip(top.tolist(), rows, strict=True))
    )


def explain_margin(
    model: RewardModel, chosen: Score, rejected: Score, top_k: int
) -> tuple[Contribution, ...]:
    """Return the features of one model that explain the margin between two scores.

    They are the differences of the contributions to the two rewards.
    """
    return select_top_contributions(
        model,
        chosen.contributions - rejected.contributions,
        chosen.projections - rejected.projections,
        chosen.activations - rejected.activations,
        top_k,
    )


def build_scored_turns(
    baseline: float, turns: Iterable[tuple[AssistantTurn, RewardNumbers]]
) -> tuple[ScoredTurn, ...]:
    """Return the turns of one conversation with their rewards and the changes between them."""
    return compute_changes(
        baseline,
        [
            ScoredTurn(turn.message, numbers.reward, numbers.uncertainty, numbers.length_correction)
            for turn, numbers in turns
        ],
    )


def compute_changes(baseline: float, turns: Sequence[ScoredTurn]) -> tuple[ScoredTurn, ...]:
    """Return the turns with the `change` of each from the one before; of the first, from the baseline.

    After every turn, reward == baseline + sum of changes so far + length_correction - penalty.
    """
    rewards = [turn.reward - turn.length_correction + turn.penalty for turn in turns]
    return tuple(
        replace(turn, change=after - before)
        for turn, before, after in zip(turns, [baseline, *rewards], rewards, strict=False)
    )
