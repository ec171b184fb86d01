"""SparseRM and StandardRM on the same pairs: accuracy, time, size and memory, from nothing to a model.

Ours is timed on an empty shelf, features included, and comes first, so that the peak of memory is its own.
Neither learns from drills, and both compute in the same precision.
"""

import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from app.evaluate.accuracy import Float64Array, accuracy_difference, bootstrap_mean, pair_wins
from app.train import features, head_training, pipeline
from app.types import Pair
from benchmarks.research import standard_rm

PROMPTS = "once a pair"


def run(
    order: pipeline.TrainingConfig,
    reader: features.FeatureExtractor,
    llm: Path,
    sizes: Sequence[int],
    plan: standard_rm.StandardPlan,
    cache: Path,
    report: pipeline.Report,
) -> dict[str, Any]:
    """Both on the first pairs of each size, judged on the order's test pairs."""
    groups = [pair.group for pair in order.test_pairs]
    tested = pipeline.table(order.test_pairs, reader, cache, "test pairs", report)
    samples = {size: pipeline.drawn(replace(order, limit=size)) for size in sizes}
    ours = {size: _sparse(order, pairs, tested, reader, report) for size, pairs in samples.items()}
    found: dict[str, Any] = {}
    for size, pairs in samples.items():
        theirs = standard_rm.run(llm, reader.text, pairs, order.test_pairs, plan, cache, report)
        won, costs = ours[size]
        beaten = pair_wins(torch.tensor(theirs.margins))
        found[str(size)] = {
            "pairs": len(pairs),
            "sparse": asdict(bootstrap_mean(won, groups)) | costs,
            "standard": asdict(bootstrap_mean(beaten, groups))
            | {
                name: getattr(theirs, name)
                for name in ("seconds", "cpu_seconds", "trainable", "peak_gib", "precision")
            },
            "lead": asdict(accuracy_difference(won, beaten, groups)),
        }
    terms = {"plan": asdict(plan), "threads": torch.get_num_threads(), "prompts": PROMPTS}
    return {**terms, "sizes": found}


def joined(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, with the sizes of an earlier duel held alike that this one was not asked for."""
    kept = before["sizes"] if before and _terms(before) == _terms(found) else {}
    sizes = {**kept, **found["sizes"]}
    return {**found, "sizes": {size: sizes[size] for size in sorted(sizes, key=int)}}


def _terms(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two duels must share to stand in one table."""
    tested = {row["lead"]["n"] for row in found["sizes"].values()}
    return found["plan"], found["threads"], found.get("prompts"), tested


def _sparse(
    order: pipeline.TrainingConfig,
    pairs: list[Pair],
    tested: features.PairFeatures,
    reader: features.FeatureExtractor,
    report: pipeline.Report,
) -> tuple[Float64Array, dict[str, Any]]:
    """Wins on the test pairs, and what training cost."""
    started = standard_rm.clocks()
    with tempfile.TemporaryDirectory() as empty:
        seen = pipeline.table(pairs, reader, Path(empty), f"SparseRM, {len(pairs)} pairs", report)
    extracted = standard_rm.clocks()
    learnt = pipeline.learn(order, pairs, seen, None, reader, report)
    fitted = standard_rm.clocks()
    vectors = tested.pooled_residuals(reader.layers[0], order.pooling)
    rewards = head_training.compute_rewards(learnt.head, learnt.dictionary.project(vectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    costs = {
        "seconds": round(fitted[0] - started[0], 1),
        "seconds_fitting": round(fitted[0] - extracted[0], 1),
        "cpu_seconds": round(fitted[1] - started[1], 1),
        "trainable": learnt.head.num_parameters,
        "peak_gib": round(peak, 2),
        "precision": str(reader.backbone.dtype).removeprefix("torch."),
    }
    return pair_wins(rewards[:, 0] - rewards[:, 1]), costs
