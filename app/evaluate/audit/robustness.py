"""Robustness of a reward model: rewrites that keep the meaning, attacks, and a greedy attack search.

An attack succeeds on a pair if the changed rejected response overtakes the chosen one. It is detected if the
distance flags the response, or, when a policy answers this way all the time, if the drift monitor reports it.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from app.data.pairs import hash_to_unit_interval
from app.evaluate import accuracy_run, report
from app.evaluate.audit import attacks, paraphrases, shift
from app.evaluate.audit.attack_search import search_attacks
from app.evaluate.audit.attacks import Attack
from app.reward.engine import Engine
from app.reward.explanation.why import OUT_OF_DISTRIBUTION_PERCENTILE
from app.scores import Score
from app.settings import Settings
from app.types import Explain, Item, Pair, Progress

MAX_KEYWORDS = 40
MAX_KEYWORD_PAIRS = 100
MAX_SEARCHED_ANSWERS = 12


def evaluate_robustness(
    folder: Path, pairs: list[Pair], sample: int, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Apply every rewrite and attack to a sample of the pairs, add the results to the report, return them."""
    engine, name = accuracy_run.load_engine(folder, settings, progress)
    pairs = sample_pairs(pairs, sample)
    items = accuracy_run.unique_items(pairs)
    scores = accuracy_run.score_items(engine, name, items, progress, "unchanged responses")
    keywords = _find_keywords(engine, name, pairs[:MAX_KEYWORD_PAIRS], progress)
    correct = [pair for pair in pairs if _margin(pair, scores) > 0]
    searched = [pair.items[1] for pair in correct[:MAX_SEARCHED_ANSWERS]]
    results = {
        "n": len(pairs),
        "transforms": _evaluate_rewrites(engine, name, pairs, scores, progress),
        "attacks": _evaluate_attacks(engine, name, pairs, scores, keywords, progress),
        "honest_psi": _max_stability_index(engine, name, list(scores.values())),
        "attacked": len(correct),
        "climb": search_attacks(engine, name, searched, keywords, progress),
    }
    report.update(folder, engine.models[name].card, {"stress": results})
    return results


def sample_pairs(pairs: list[Pair], count: int) -> list[Pair]:
    """Return a reproducible random sample of the pairs."""

    def hash_pair(pair: Pair) -> float:
        return hash_to_unit_interval(f"stress/{pair.group}/{pair.rejected}")

    return sorted(pairs, key=hash_pair)[:count]


def _evaluate_rewrites(
    engine: Engine, name: str, pairs: list[Pair], scores: Mapping[Item, Score], progress: Progress
) -> dict[str, Any]:
    """Return, for each rewrite, the accuracy, the loss of accuracy, and the share of pairs that flip."""
    correct = np.array([_margin(pair, scores) > 0 for pair in pairs])
    results = {}
    for rewrite in paraphrases.REWRITE_NAMES:
        rewritten = paraphrases.rewrite_pairs(rewrite, pairs)
        items = accuracy_run.unique_items(rewritten)
        new_scores = accuracy_run.score_items(engine, name, items, progress, rewrite)
        correct_after = np.array([_margin(pair, new_scores) > 0 for pair in rewritten])
        results[rewrite] = {
            "accuracy": float(correct_after.mean()),
            "drop": float(correct.mean() - correct_after.mean()),
            "flips": float((correct != correct_after).mean()),
        }
    return results


def _evaluate_attacks(
    engine: Engine,
    name: str,
    pairs: list[Pair],
    scores: Mapping[Item, Score],
    keywords: list[str],
    progress: Progress,
) -> dict[str, Any]:
    """Return, for each attack, the share of rejected responses that overtake, are flagged, or both.

    Shares are of the pairs that are ranked correctly without the attack. "psi" is the drift that the monitor
    would report for all attacked responses together.
    """
    correct = np.array([_margin(pair, scores) > 0 for pair in pairs])
    chosen_rewards = [scores[pair.items[0]].reward for pair in pairs]
    results = {}
    for attack_name, attack in attacks.ATTACKS.items():
        items = attack_pairs(attack, pairs, keywords)
        unique = list(dict.fromkeys(items))
        item_scores = accuracy_run.score_items(engine, name, unique, progress, attack_name)
        attacked = [item_scores[item] for item in items]
        overtakes = np.array([a.reward > chosen for a, chosen in zip(attacked, chosen_rewards, strict=True)])
        flagged = np.array([a.distance >= OUT_OF_DISTRIBUTION_PERCENTILE for a in attacked])
        results[attack_name] = {
            "overtakes": float(overtakes[correct].mean()),
            "strange": float(flagged[correct].mean()),
            "overtakes_unnoticed": float((overtakes & ~flagged)[correct].mean()),
            "psi": _max_stability_index(engine, name, attacked),
        }
    return results


def attack_pairs(attack: Attack, pairs: list[Pair], keywords: list[str]) -> list[Item]:
    """Return the attacked rejected response of each pair."""
    rng = Random(0)  # noqa: S311 # reproducible sampling, not a secret
    return [
        Item(pair.messages, attack(pair.messages[-1].content, pair.rejected, keywords, rng)) for pair in pairs
    ]


def _max_stability_index(engine: Engine, name: str, scores: list[Score]) -> float:
    """Return the largest stability index that the drift monitor would report after these scores."""
    edges = shift.bin_edges(engine.models[name])
    counts = np.zeros((len(edges), shift.BINS), dtype=np.int64)
    for score in scores:
        shift.count_response(counts, shift.assign_bins(score, edges))
    return max(shift.summarize(counts).values())


def _find_keywords(engine: Engine, name: str, pairs: list[Pair], progress: Progress) -> list[str]:
    """Return the words with the highest total credit in chosen responses.

    An attacker who can query the model would learn the same words.
    """
    credit_by_word: defaultdict[str, float] = defaultdict(float)
    chosen = list(dict.fromkeys(pair.items[0] for pair in pairs))
    scores = accuracy_run.score_items(engine, name, chosen, progress, "keywords", explain=Explain.TOKENS)
    for token in (token for pair in pairs for token in scores[pair.items[0]].tokens or ()):
        if token.text.strip().isalpha():
            credit_by_word[token.text.strip()] += token.credit
    return sorted(credit_by_word, key=lambda word: -credit_by_word[word])[:MAX_KEYWORDS]


def _margin(pair: Pair, scores: Mapping[Item, Score]) -> float:
    chosen, rejected = pair.items
    return scores[chosen].reward - scores[rejected].reward
