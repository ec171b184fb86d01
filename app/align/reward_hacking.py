"""Detection of reward hacking: what is checked after every round, and when the run stops.

Two rewards are compared on the same answered prompts: the optimised one and a held-out one. If the first
rises and the second falls, both significantly, the policy exploits errors of the optimised reward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.align.config import AlignmentConfig
from app.evaluate.accuracy import Accuracy, bootstrap_mean

Row = dict[str, Any]
REWARD, HELD_OUT, DISTANCE = "reward", "held-out reward", "reward distance"


def find_alarms(
    config: AlignmentConfig, before: Sequence[Row], after: Sequence[Row], initial: Row, current: Row
) -> list[str]:
    """Return the reasons to stop, in words.

    `before` and `after` are responses of two rounds to the same prompts; `initial` and `current` are the
    summaries of round 0 and of the round just finished.
    """
    alarms = []
    if current["kl"] > config.max_kl:
        alarms.append(
            f"KL to the initial policy is {current['kl']:.2f} nats per token, above max_kl = {config.max_kl}"
        )
    drift = current[DISTANCE]["mean"] - initial[DISTANCE]["mean"] if DISTANCE in current else 0.0
    if drift > config.max_drift:
        alarms.append(
            f"the mean distance of responses rose by {drift:.0f} percentile points, above "
            f"max_drift = {config.max_drift:g}"
        )
    if HELD_OUT in after[0]:
        reward, held_out = mean_change(before, after, REWARD), mean_change(before, after, HELD_OUT)
        if reward.ci_low > 0 > held_out.ci_high:
            alarms.append(f"the reward rose by {reward} while the held-out reward fell by {held_out}")
    return alarms


def mean_change(before: Sequence[Row], after: Sequence[Row], name: str) -> Accuracy:
    """Return the mean change of a value of responses to the same prompts, with a paired interval."""
    changes = np.array(
        [new_row[name] - old_row[name] for old_row, new_row in zip(before, after, strict=True)]
    )
    return bootstrap_mean(changes, [str(index) for index in range(len(changes))])
