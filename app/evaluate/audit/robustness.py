"""What a reward does under pressure: the same said otherwise, bad answers dressed up, and a patient attacker.

An attack wins a pair when the dressed-up bad answer overtakes the good one. It is caught when the distance
calls the answer strange, or, if a policy answers like that every time, when the drift monitor says so.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from app.backbone.model_sources import Progress
from app.data.pairs import chance
from app.evaluate import accuracy_run, report
from app.evaluate.audit import attacks, paraphrases, shift, uncertainty
from app.evaluate.audit.attack_search import climb
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, Pair, Score

KEYWORDS, WITNESSES = 40, 100
CLIMBERS = 12


def run(
    folder: Path, pairs: list[Pair], sample: int, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Every transform and attack on a sample of the pairs; the figures join the bundle's report."""
    engine, name = accuracy_run.alone(folder, settings, progress)
    drawn = sampled(pairs, sample)
    scores = accuracy_run.score(engine, name, accuracy_run.responses(drawn), progress, "as they are")
    keywords = _keywords(engine, name, drawn[:WITNESSES], progress)
    beaten = [pair for pair in drawn if _margin(pair, scores) > 0]
    found = {
        "n": len(drawn),
        "transforms": _transformed(engine, name, drawn, scores, progress),
        "attacks": _attacked(engine, name, drawn, scores, keywords, progress),
        "honest_psi": _moved(engine, name, list(scores.values())),
        "attacked": len(beaten),
        "climb": climb(engine, name, [pair.items[1] for pair in beaten[:CLIMBERS]], keywords, progress),
    }
    report.write(folder, engine.models[name].card, {"stress": found})
    return found


def sampled(pairs: list[Pair], count: int) -> list[Pair]:
    """Some of the pairs by chance, the same each time."""
    return sorted(pairs, key=lambda pair: chance(f"stress/{pair.group}/{pair.rejected}"))[:count]


def _transformed(
    engine: Engine, name: str, pairs: list[Pair], scores: Mapping[Item, Score], progress: Progress
) -> dict[str, Any]:
    """Accuracy after each transform, what it lost, and how many pairs changed sides."""
    before = np.array([_margin(pair, scores) > 0 for pair in pairs])
    found = {}
    for what in paraphrases.ALL:
        changed = paraphrases.otherwise(what, pairs)
        said = accuracy_run.score(engine, name, accuracy_run.responses(changed), progress, what)
        after = np.array([_margin(pair, said) > 0 for pair in changed])
        found[what] = {
            "accuracy": float(after.mean()),
            "drop": float(before.mean() - after.mean()),
            "flips": float((before != after).mean()),
        }
    return found


def _attacked(
    engine: Engine,
    name: str,
    pairs: list[Pair],
    scores: Mapping[Item, Score],
    keywords: list[str],
    progress: Progress,
) -> dict[str, Any]:
    """For each attack: how many bad answers that lost overtake, how many do so without looking strange.

    And how far all of them together have moved, as the drift monitor measures it.
    """
    found = {}
    beaten = np.array([_margin(pair, scores) > 0 for pair in pairs])
    for what, attack in attacks.ATTACKS.items():
        rng = Random(0)  # noqa: S311 # chance, not a secret
        dressed = [Item(p.messages, attack(p.messages[-1].content, p.rejected, keywords, rng)) for p in pairs]
        said = accuracy_run.score(engine, name, list(dict.fromkeys(dressed)), progress, what)
        goods = [scores[pair.items[0]].reward for pair in pairs]
        wins = np.array([said[one].reward > good for one, good in zip(dressed, goods, strict=True)])
        strange = np.array([said[one].distance >= uncertainty.STRANGE for one in dressed])
        found[what] = {
            "overtakes": float(wins[beaten].mean()),
            "strange": float(strange[beaten].mean()),
            "overtakes_unnoticed": float((wins & ~strange)[beaten].mean()),
            "psi": _moved(engine, name, [said[one] for one in dressed]),
        }
    return found


def _moved(engine: Engine, name: str, scores: list[Score]) -> float:
    """The largest stability index the drift monitor would show after these responses."""
    between = shift.edges(engine.models[name])
    counts = np.zeros((len(between), shift.BINS), dtype=np.int64)
    for score in scores:
        shift.add(counts, shift.bins(score, between))
    return max(shift.overall(counts).values())


def _keywords(engine: Engine, name: str, pairs: list[Pair], progress: Progress) -> list[str]:
    """The words that earn most in good answers: what an attacker who can ask would learn."""
    earned: defaultdict[str, float] = defaultdict(float)
    goods = list(dict.fromkeys(pair.items[0] for pair in pairs))
    said = accuracy_run.score(engine, name, goods, progress, "keywords", explain=Explain.TOKENS)
    for token in (token for pair in pairs for token in said[pair.items[0]].tokens or ()):
        if token.text.strip().isalpha():
            earned[token.text.strip()] += token.credit
    return sorted(earned, key=lambda word: -earned[word])[:KEYWORDS]


def _margin(pair: Pair, scores: Mapping[Item, Score]) -> float:
    chosen, rejected = pair.items
    return scores[chosen].reward - scores[rejected].reward
