"""Measures a trained model on the packaged pairs that show limitations, beside baselines of the same data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from app.evaluate.accuracy import ScoredPairs
from app.evaluate.baselines import tfidf_margins
from app.evaluate.suites.limitation_pairs import TFIDF, measure_files
from app.reward.reward_model import RewardModel
from app.train.features import FeatureExtractor, extract_features
from app.train.reward_function import RewardFunction
from app.types import Pair, Progress

STAGE = "limitations"


def evaluate_limitations(
    model: RewardModel,
    files: Mapping[str, Sequence[Pair]],
    train_pairs: list[Pair],
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Return the section "limitations" of a report, for pairs by file; an empty dict without pairs.

    TF-IDF is trained on the model's training pairs.
    """
    pairs = [pair for file_pairs in files.values() for pair in file_pairs]
    if not pairs:
        return {}
    features = extract_features(
        [pair.items for pair in pairs],
        extractor,
        cache,
        lambda done: progress(STAGE, done / (2 * len(pairs))),
    )
    rewards = RewardFunction.from_model(model).compute_rewards(features)
    scored = ScoredPairs(rewards, features.lengths(), [pair.group for pair in pairs])
    names = [name for name, file_pairs in files.items() for _ in file_pairs]
    progress(STAGE, 1.0)
    return {STAGE: measure_files(names, scored, _train_tfidf(train_pairs, pairs))}


def summarise_limitations(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the manifest: the accuracy on each file, as `limitations_` and its name."""
    return {f"{STAGE}_{name}": row["accuracy"] for name, row in results.get(STAGE, {}).items()}


def _train_tfidf(train_pairs: list[Pair], pairs: list[Pair]) -> dict[str, Tensor]:
    """Return the margins of TF-IDF; nothing if no word occurs in two training responses."""
    try:
        return {TFIDF: tfidf_margins(train_pairs, pairs)}
    except ValueError:
        return {}
