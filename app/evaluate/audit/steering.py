"""Steering: whether scaling a concept moves the rewards of its target responses and leaves the rest alone.

The target of a concept is the share of responses on which its latents are
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
    """Return each concept's shifts, the most selective concept first.

    The factor is the first of FACTORS that moves the target by MIN_TARGET_SHIFT, or else the last one.
    """
    x = model.head.standardise(projections)
    rows = [
        _evaluate_concept(model, name, directions, x, activations)
        for name, directions in model.concept_indices.items()
    ]
    return sorted(rows, key=lambda row: abs(row["rest"]) / max(abs(row["target"]), 1e-9))


def _evaluate_concept(
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
            "concept": name,
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
