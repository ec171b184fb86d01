"""Steering: whether scaling a cluster moves the rewards of its target responses and leaves the rest alone.

A cluster is all directions with the same name. Its target is the share of responses on which its latents are
most active. Shifts are in standard deviations of the reward on training responses.
"""

from typing import Any

import torch
from torch import Tensor

from app.reward.reward_model import RewardModel

TARGET_SHARE = 0.05
FACTORS = (0.0, 2.0, 5.0, 10.0)
MIN_TARGET_SHIFT = 0.5


def evaluate_steering(model: RewardModel, projections: Tensor, activations: Tensor) -> list[dict[str, Any]]:
    """Return each cluster's shifts, the most selective cluster first.

    The factor is the first of FACTORS that moves the target by MIN_TARGET_SHIFT, or else the last one.
    Directions with sign 0 have no latent and are left out.
    """
    x = model.head.standardise(projections)
    rows = [
        _evaluate_cluster(model, name, directions, x, activations)
        for name, directions in model.clusters.items()
        if any(model.features[k].sign for k in directions)
    ]
    return sorted(rows, key=lambda row: abs(row["rest"]) / max(abs(row["target"]), 1e-9))


def _evaluate_cluster(
    model: RewardModel, name: str, directions: list[int], x: Tensor, activations: Tensor
) -> dict[str, Any]:
    rewards = model.head.score_members(x).mean(1)
    target = _select_target(activations[:, directions].sum(1))
    row: dict[str, Any] = {}
    for factor in FACTORS:
        steered = x.clone()
        steered[:, directions] *= factor
        shift = model.head.score_members(steered).mean(1) - rewards
        row = {
            "cluster": name,
            "directions": len(directions),
            "factor": factor,
            "target": float(shift[target].mean()),
            "rest": float(shift[~target].mean()),
            "rest_size": float(shift[~target].abs().mean()),
        }
        if abs(row["target"]) >= MIN_TARGET_SHIFT:
            break
    return row


def _select_target(activity: Tensor) -> Tensor:
    """Return the mask of the responses with the highest activity."""
    count = max(int(TARGET_SHARE * len(activity)), 1)
    target = torch.zeros(len(activity), dtype=torch.bool)
    target[activity.topk(count).indices] = True
    return target
