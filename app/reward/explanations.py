"""Explanation of rewards: reward numbers, steering factors, contributions of features and clusters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from app.reward.directions import ResponseFeatures
from app.reward.pooling import pooled_span
from app.reward.reward_model import RewardModel
from app.types import AssistantTurn, Cluster, Contribution, Profile, Score, ScoreOptions


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
    steered: Tensor,
    turns: Sequence[AssistantTurn],
    length_control: Sequence[bool],
) -> list[RewardNumbers]:
    """Return the numbers of each turn from its standardised projections (B, K), plain and steered.

    The distance uses the plain ones, because steering does not change how unusual a turn is.
    """
    turn_tokens = torch.tensor([turn.end - turn.start for turn in turns], device=plain.device)
    spans = [pooled_span(model.card.readout, turn) for turn in turns]
    pooled_tokens = torch.tensor([end - start for start, end in spans], device=plain.device)
    length_controlled = torch.tensor(length_control, device=plain.device)
    member_rewards = model.head.score_members(steered)
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


def sum_clusters(model: RewardModel, contributions: Tensor) -> tuple[Cluster, ...]:
    """Return the contribution of each cluster, largest first. Together they sum to all contributions."""
    labelled = {index for indices in model.clusters.values() for index in indices}
    unlabelled = [index for index in range(len(contributions)) if index not in labelled]
    clusters = [
        Cluster(name, len(indices), float(contributions[indices].sum()))
        for name, indices in (*model.clusters.items(), (None, unlabelled))
        if indices
    ]
    return tuple(sorted(clusters, key=lambda cluster: -abs(cluster.contribution)))


def select_top_contributions(
    model: RewardModel, contributions: Tensor, features: ResponseFeatures, row: int, count: int
) -> tuple[Contribution, ...]:
    """Return the `count` largest contributions by size, with the projection and activation of `row`."""
    top = contributions.abs().topk(min(count, len(contributions))).indices.tolist()
    return tuple(
        Contribution(
            model=model.card.name,
            feature=model.features[k],
            contribution=float(contributions[k]),
            projection=float(features.projections[row, k]),
            activation=float(features.activations[row, k]),
            fired=bool(features.activations[row, k] != 0),
        )
        for k in top
    )


def explain_margin(
    model: RewardModel, chosen: Score, rejected: Score, top_k: int
) -> tuple[Contribution, ...]:
    """Return the features of one model that explain the margin between two scores, steered like `chosen`."""
    device = model.head.center.device
    factors = build_steering_factors(model, [Profile(steer=chosen.steer)]).to(device)
    x, origin = (
        model.head.standardise(torch.from_numpy(score.projections).to(device)) * factors
        for score in (chosen, rejected)
    )
    contributions = model.head.compute_contributions(x, origin)[0].cpu()
    differences = ResponseFeatures(
        torch.from_numpy(chosen.projections - rejected.projections)[None],
        torch.from_numpy(chosen.activations - rejected.activations)[None],
    )
    return select_top_contributions(model, contributions, differences, 0, top_k)
