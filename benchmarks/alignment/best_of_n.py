"""Best-of-n: how far the gold reward climbs when the other reward chooses, and where it turns.

One pool of responses a prompt stands for every n: the expectation over all subsets of n is exact.
"""

from collections.abc import Callable
from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np

from app.align.artifacts import RunArtifacts
from app.align.policy.model import Conversation, Policy, SamplingConfig, sample_completions
from app.evaluate.accuracy import BOOTSTRAP_RESAMPLES, Float64Array
from app.types import Item
from benchmarks.alignment.presets import Preset
from benchmarks.alignment.reward_models import Jury

Row = dict[str, Any]
SEED = 104_729


def run(
    prompts: list[Conversation], preset: Preset, jury: Jury, start: Policy, folder: Path,
    report: Callable[[str, float], None],
) -> Row:  # fmt: skip
    """The curve for n = 1, 2, 4, ... up to the pool, with its peak."""
    stages = RunArtifacts(folder)
    stages.record_config({"prompts": len(prompts), "pool": preset.pool, "new_tokens": preset.new_tokens})
    how = SamplingConfig(preset.pool, preset.new_tokens, 1.0, SEED)
    rows = stages.load_or_create_rows(
        "pool",
        lambda: [
            {"responses": [one.response for one in some]}
            for some in sample_completions(
                start, prompts, how, lambda share: report("best of n: drawing", share)
            )
        ],
    )

    def scored() -> list[list[list[float]]]:
        asked = [Item(t, said) for t, row in zip(prompts, rows, strict=True) for said in row["responses"]]
        both = (jury.scorer(lambda: jury.sparse)(asked), jury.scorer(lambda: jury.gold)(asked))
        return [np.reshape([one.reward for one in some], (len(prompts), -1)).tolist() for some in both]

    proxy, gold = (np.array(some) for some in stages.load_or_create_json("rewards", scored))
    return curve(proxy, gold)


def curve(proxy: Float64Array, gold: Float64Array) -> Row:
    """Both rewards of the best of n by the first, (prompts, pool) each, in deviations of the pool."""
    sizes = [2**power for power in range(proxy.shape[1].bit_length()) if 2**power <= proxy.shape[1]]
    order = np.argsort(-proxy, axis=1, kind="stable")
    scale = {"reward": proxy, "gold": gold}
    chosen = {
        name: np.stack([_standard(values, order) @ _chances(proxy.shape[1], n) for n in sizes])
        for name, values in scale.items()
    }
    draws = np.random.default_rng(0).integers(proxy.shape[0], size=(BOOTSTRAP_RESAMPLES, proxy.shape[0]))
    peaks = chosen["gold"][:, draws].mean(2).argmax(0)
    return {
        "n": sizes,
        "kl": [log(n) - (n - 1) / n for n in sizes],
        **{name: [_interval(row, draws) for row in rows] for name, rows in chosen.items()},
        "peak": sizes[int(chosen["gold"].mean(1).argmax())],
        "peak_interval": [sizes[int(np.percentile(peaks, at, method="nearest"))] for at in (2.5, 97.5)],
        "prompts": proxy.shape[0],
    }


def _standard(values: Float64Array, order: Any) -> Float64Array:
    """Best first by the chooser, less the prompt's mean, in deviations within prompts."""
    centred = values - values.mean(1, keepdims=True)
    found: Float64Array = np.take_along_axis(centred, order, axis=1) / max(float(centred.std()), 1e-9)
    return found


def _chances(pool: int, n: int) -> Float64Array:
    """How likely each of the pool, best first, is the best of n drawn without putting back."""
    return np.array([comb(pool - at - 1, n - 1) / comb(pool, n) for at in range(pool)])


def _interval(row: Float64Array, draws: Any) -> Row:
    low, high = np.percentile(row[draws].mean(1), [2.5, 97.5])
    return {"mean": float(row.mean()), "ci_low": float(low), "ci_high": float(high)}
