"""Measures a trained model on packaged pairs that show limitations, and on a sample of attacks."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from app.evaluate.accuracy import ScoredPairs
from app.evaluate.audit.attacks import ATTACKS
from app.evaluate.audit.robustness import MAX_KEYWORDS, attack_pairs, sample_pairs
from app.evaluate.baselines import tfidf_margins
from app.evaluate.suites.limitation_pairs import TFIDF, measure_files
from app.reward.reward_model import RewardModel
from app.train.features import FeatureExtractor, extract_features
from app.train.reward_function import RewardFunction
from app.types import Pair, Progress

STAGE = "limitations"
ATTACKED_PAIRS = 20
"""Test pairs that every attack is tried on at the end of a training run."""
WORD = re.compile(r"[A-Za-z]{2,}")


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


def evaluate_attack_sample(
    model: RewardModel, pairs: list[Pair], extractor: FeatureExtractor, cache: Path, progress: Progress
) -> dict[str, Any]:
    """Return the section "attack_sample" of a report: which share of responses overtakes by each attack.

    Shares are of the sampled pairs that the model ranks right without the attack. `sparserm stress` measures
    more pairs, and whether the distance detects the attacks.
    """
    sample = sample_pairs(pairs, ATTACKED_PAIRS)
    keywords = _find_keywords(sample)
    attacked = [attack_pairs(attack, sample, keywords) for attack in ATTACKS.values()]
    rows = [(*pair.items, *items) for pair, items in zip(sample, zip(*attacked, strict=True), strict=True)]
    count = max(len(rows) * (len(ATTACKS) + 2), 1)
    features = extract_features(rows, extractor, cache, lambda done: progress("attacks", done / count))
    rewards = RewardFunction.from_model(model).compute_rewards(features)
    correct = rewards[:, 0] > rewards[:, 1]
    overtakes = (rewards[correct, 2:] > rewards[correct, :1]).double().mean(0)
    progress("attacks", 1.0)
    shares = dict(zip(ATTACKS, overtakes.tolist(), strict=True)) if correct.any() else {}
    return {"attack_sample": {"n": int(correct.sum()), "attacks": shares}}


def _find_keywords(pairs: list[Pair]) -> list[str]:
    """Return the words that more chosen than rejected responses have."""
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts.update(set(WORD.findall(pair.chosen)))
        counts.subtract(set(WORD.findall(pair.rejected)))
    return [word for word, count in counts.most_common(MAX_KEYWORDS) if count > 0] or ["yes"]


def summarise_limitations(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the manifest: the accuracy on each file, as `limitations_` and its name."""
    return {f"{STAGE}_{name}": row["accuracy"] for name, row in results.get(STAGE, {}).items()}


def _train_tfidf(train_pairs: list[Pair], pairs: list[Pair]) -> dict[str, Tensor]:
    """Return the margins of TF-IDF; nothing if no word occurs in two training responses."""
    try:
        return {TFIDF: tfidf_margins(train_pairs, pairs)}
    except ValueError:
        return {}
