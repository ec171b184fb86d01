"""From readings to what an answer says of them: numbers, contributions, clusters, and what was steered."""

from dataclasses import replace

import torch
from torch import Tensor

from app.reward.bundle import RewardModel
from app.reward.directions import Reading, span
from app.types import Cluster, Contribution, EncodedItem, Profile, ScoreOptions


def wish(ask: ScoreOptions, model: RewardModel, profile: Profile) -> Profile:
    """A profile with what a request asks on top of it."""
    mine = {key: factor for key, factor in ask.steer.items() if model.places(key)}
    steer = {**profile.steer, **mine}
    return replace(profile, steer=steer, length_control=profile.length_control or ask.length_control)


def factors(model: RewardModel, wishes: list[Profile]) -> Tensor:
    """How much of each direction's deviation from the baseline is let through, (B, K)."""
    factors = torch.ones(len(wishes), len(model.features), dtype=torch.float64)
    for row, wished in enumerate(wishes):
        for key, factor in wished.steer.items():
            factors[row, model.places(key)] = factor
    return factors


def numbers(
    model: RewardModel, readings: tuple[Tensor, Tensor], encoded: list[EncodedItem], control: list[bool]
) -> list[list[float]]:
    """Reward, uncertainty, percentile, distance and length correction of readings, plain and steered."""
    plain, steered = readings
    tokens = torch.tensor([one.stop - one.start for one in encoded], device=plain.device)
    spans = [span(model.card.readout, one) for one in encoded]
    read_tokens = torch.tensor([stop - start for start, stop in spans], device=plain.device)
    controlled = torch.tensor(control, device=plain.device)
    members = model.head.members(steered)
    correction = model.calibration.correction(tokens) * controlled
    rewards = members.mean(1) + correction
    columns = (
        rewards,
        members.std(1, correction=0),
        model.calibration.percentile(rewards, controlled),
        model.calibration.distance(plain, read_tokens, tokens),
        correction,
    )
    numbers: list[list[float]] = torch.stack(columns, dim=1).tolist()
    return numbers


def clusters(model: RewardModel, shares: Tensor) -> tuple[Cluster, ...]:
    """What each cluster contributes, largest first; together they are the sum of all contributions."""
    named = {place for places in model.clusters.values() for place in places}
    rest = [place for place in range(len(shares)) if place not in named]
    found = [
        Cluster(name, len(places), float(shares[places].sum()))
        for name, places in (*model.clusters.items(), (None, rest))
        if places
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.contribution)))


def top(
    model: RewardModel, shares: Tensor, reading: Reading, row: int, count: int
) -> tuple[Contribution, ...]:
    """The `count` largest contributions by size."""
    best = shares.abs().topk(min(count, len(shares))).indices.tolist()
    return tuple(
        Contribution(
            model.card.name,
            model.features[k],
            float(shares[k]),
            float(reading.projections[row, k]),
            float(reading.activations[row, k]),
            bool(reading.activations[row, k] != 0),
        )
        for k in best
    )
