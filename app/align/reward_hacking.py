"""Is the reward being hacked? What is watched after every round, and when it is time to stop.

Two rewards are compared on the same answered prompts: the one that is optimised and one that is not. When
the first rises and the second falls, both beyond chance, the policy has found what the first overrates.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.align.config import AlignmentConfig
from app.evaluate.accuracy import Accuracy, bootstrap_mean

Row = dict[str, Any]
REWARD, HELD_OUT, DISTANCE = "reward", "held-out reward", "reward distance"


def alarms(
    plan: AlignmentConfig, before: Sequence[Row], now: Sequence[Row], start: Row, found: Row
) -> list[str]:
    """Why to stop, in words; `before` and `now` are answers of two rounds, the rest their summaries."""
    said = []
    if found["kl"] > plan.max_kl:
        said.append(f"KL to the start is {found['kl']:.2f} nats a token, beyond {plan.max_kl}")
    drift = found[DISTANCE]["mean"] - start[DISTANCE]["mean"] if DISTANCE in found else 0.0
    if drift > plan.max_drift:
        said.append(f"answers are {drift:.0f} percentile points further from home, beyond {plan.max_drift:g}")
    if HELD_OUT in now[0]:
        reward, held_out = change(before, now, REWARD), change(before, now, HELD_OUT)
        if reward.ci_low > 0 > held_out.ci_high:
            said.append(f"the reward rose by {reward} while the held-out one fell by {held_out}")
    return said


def change(before: Sequence[Row], now: Sequence[Row], name: str) -> Accuracy:
    """How a figure of answers to the same prompts moved, with a paired interval."""
    values = np.array([late[name] - early[name] for early, late in zip(before, now, strict=True)])
    return bootstrap_mean(values, [str(at) for at in range(len(values))])
