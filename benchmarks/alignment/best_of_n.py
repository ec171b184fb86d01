"""Best-of-n: how the gold reward changes with n when another reward selects, and where it starts to fall.

One pool of responses per prompt gives every n: the expectation over all subsets of size n is exact.
"""

from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np

from app.align.artifacts import RunArtifacts
from app.align.policy.model import Conversation, Policy, SamplingConfig, sample_completions
from app.evaluate.accuracy import BOOTSTRAP_RESAMPLES, Float64Array
from app.types import Item, Progress
from benchmarks.alignment.presets import Preset
from benchmarks.alignment.reward_models import RewardModels

Row = dict[str, Any]
SAMPLING_SEED = 104_729


def run_best_of_n(
    prompts: list[Conversation], preset: Preset, models: RewardModels, policy: Policy, folder: Path,
    progress: Progress,
) -> Row:  # fmt: skip
    """The curve for n = 1, 2, 4, ... up to the pool size, with its peak."""
    artifacts = RunArtifacts(folder)
    artifacts.record_config({"prompts": len(prompts), "pool": preset.pool, "new_tokens": preset.new_tokens})
    sampling = SamplingConfig(preset.pool, preset.new_tokens, 1.0, SAMPLING_SEED)
    rows = artifacts.load_or_create_rows(
        "pool",
        lambda: [
            {"responses": [completion.response for completion in completions]}
            for completions in sample_completions(
                policy, prompts, sampling, lambda share: progress("best of n: sampling", share)
            )
        ],
    )

    def score_pool() -> list[list[list[float]]]:
        items = [
            Item(prompt, response)
            for prompt, row in zip(prompts, rows, strict=True)
            for response in row["responses"]
        ]
        functions = (
            models.make_reward_function(lambda: models.sparse),
            models.make_reward_function(lambda: models.gold),
        )
        return [
            np.reshape([score.reward for score in score_items(items)], (len(prompts), -1)).tolist()
            for score_items in functions
        ]

    proxy, gold = (np.array(rewards) for rewards in artifacts.load_or_create_json("rewards", score_pool))
    return best_of_n_curve(proxy, gold)


def best_of_n_curve(proxy: Float64Array, gold: Float64Array) -> Row:
    """Both rewards of the best of n by `proxy`, in standard deviations; the inputs are (prompts, pool)."""
    prompts, pool = proxy.shape
    sizes = [2**power for power in range(pool.bit_length()) if 2**power <= pool]
    order = np.argsort(-proxy, axis=1, kind="stable")
    expected = {
        name: np.stack([_standardise(rewards, order) @ _selection_probabilities(pool, n) for n in sizes])
        for name, rewards in {"reward": proxy, "gold": gold}.items()
    }
    resamples = np.random.default_rng(0).integers(prompts, size=(BOOTSTRAP_RESAMPLES, prompts))
    peaks = expected["gold"][:, resamples].mean(2).argmax(0)
    return {
        "n": sizes,
        "kl": [log(n) - (n - 1) / n for n in sizes],
        **{name: [_interval(row, resamples) for row in rows] for name, rows in expected.items()},
        "peak": sizes[int(expected["gold"].mean(1).argmax())],
        "peak_interval": [
            sizes[int(np.percentile(peaks, percent, method="nearest"))] for percent in (2.5, 97.5)
        ],
        "prompts": prompts,
    }


def _standardise(rewards: Float64Array, order: Any) -> Float64Array:
    """Sorted by `order`, minus the prompt's mean, in standard deviations within prompts."""
    centred = rewards - rewards.mean(1, keepdims=True)
    standardised: Float64Array = np.take_along_axis(centred, order, axis=1) / max(float(centred.std()), 1e-9)
    return standardised


def _selection_probabilities(pool: int, n: int) -> Float64Array:
    """The probability that each response, best first, is the best of n drawn without replacement."""
    return np.array([comb(pool - rank - 1, n - 1) / comb(pool, n) for rank in range(pool)])


def _interval(values: Float64Array, resamples: Any) -> Row:
    low, high = np.percentile(values[resamples].mean(1), [2.5, 97.5])
    return {"mean": float(values.mean()), "ci_low": float(low), "ci_high": float(high)}
