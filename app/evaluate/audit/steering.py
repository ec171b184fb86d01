"""Whether a steered cluster moves what it should, and leaves the rest alone.

A cluster is all directions of one name. Its target set are the responses on which its latents are most
active; the rest is everything else. Shifts are in training deviations of the reward.
"""

from typing import Any

import torch
from torch import Tensor

from app.reward.bundle import RewardModel

TARGET_SHARE = 0.05
FACTORS = (0.0, 2.0, 5.0, 10.0)
GOAL = 0.5


def examine(model: RewardModel, projections: Tensor, activations: Tensor) -> list[dict[str, Any]]:
    """Each cluster at the least factor that moves its target by half a deviation; most selective first."""
    x = model.head.standardise(projections)
    before = model.head.members(x).mean(1)
    found = []
    for name, places in model.clusters.items():
        active = activations[:, places].sum(1)
        count = max(int(TARGET_SHARE * len(active)), 1)
        target = torch.zeros(len(active), dtype=torch.bool)
        target[active.topk(count).indices] = True
        for factor in FACTORS:
            steered = x.clone()
            steered[:, places] *= factor
            shift = model.head.members(steered).mean(1) - before
            moved, rest = float(shift[target].mean()), float(shift[~target].mean())
            if abs(moved) >= GOAL or factor == FACTORS[-1]:
                found.append(
                    {"cluster": name, "directions": len(places), "factor": factor, "target": moved,
                     "rest": rest, "rest_size": float(shift[~target].abs().mean())}
                )  # fmt: skip
                break
    return sorted(found, key=lambda one: abs(one["rest"]) / max(abs(one["target"]), 1e-9))
