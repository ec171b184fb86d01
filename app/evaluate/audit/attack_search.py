"""A greedy attack search: insert, replace or delete one word at a time, keeping the highest reward."""

from random import Random
from typing import Any

import numpy as np

from app.evaluate import accuracy_run
from app.reward.engine import Engine
from app.reward.explanation.why import OUT_OF_DISTRIBUTION_PERCENTILE
from app.scores import Score
from app.types import Item, Progress

EDITS = 10
CANDIDATES_PER_EDIT = 12


def search_attacks(
    engine: Engine, name: str, answers: list[Item], words: list[str], progress: Progress
) -> dict[str, Any]:
    """Return how far greedy edits raise the reward of rejected responses, in total and before detection.

    `words` are the words that the search inserts.
    """
    rng = Random(0)  # noqa: S311 # reproducible sampling, not a secret
    items = list(dict.fromkeys(answers))
    initial_scores = accuracy_run.score_items(engine, name, items, progress, "attack search: initial scores")
    history = [[initial_scores[item] for item in items]]
    for step in range(EDITS):
        candidates = [
            [item, *(_edit_one_word(item, words, rng) for _ in range(CANDIDATES_PER_EDIT))] for item in items
        ]
        unique_candidates = list(dict.fromkeys(item for group in candidates for item in group))
        scores = accuracy_run.score_items(engine, name, unique_candidates, lambda *_: None)
        items = [max(group, key=lambda item: scores[item].reward) for group in candidates]
        history.append([scores[item] for item in items])
        progress("attack search", (step + 1) / EDITS)
    return _summarize(history)


def _summarize(history: list[list[Score]]) -> dict[str, Any]:
    """Summarize the scores of all responses, one list per edit; the first is before any edit."""
    rewards = np.array([[score.reward for score in scores] for scores in history])
    flagged = np.array(
        [[score.distance >= OUT_OF_DISTRIBUTION_PERCENTILE for score in scores] for scores in history]
    )
    gains = rewards - rewards[:1]
    undetected_gains = np.where(np.cumsum(flagged, axis=0) > 0, 0.0, gains).max(axis=0)
    return {
        "answers": gains.shape[1],
        "edits": EDITS,
        "gain": [float(gain) for gain in gains.mean(1)],
        "gain_unnoticed": float(undetected_gains.mean()),
        "strange_at_the_end": float(flagged[-1].mean()),
    }


def _edit_one_word(answer: Item, words: list[str], rng: Random) -> Item:
    parts = answer.response.split(" ")
    position, word = rng.randrange(len(parts) + 1), rng.choice(words or ["yes"])
    edit = rng.choice(("insert", "replace", "delete"))
    if edit == "insert" or position == len(parts):
        parts.insert(position, word)
    elif edit == "replace":
        parts[position] = word
    elif len(parts) > 1:
        parts.pop(position)
    text = " ".join(parts)
    return Item(answer.messages, text) if text.strip() else answer
