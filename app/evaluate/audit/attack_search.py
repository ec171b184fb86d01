"""A patient attacker: words put in, exchanged or taken out, one at a time, whichever raises the reward."""

from random import Random
from typing import Any

import numpy as np

from app.backbone.model_sources import Progress
from app.evaluate import accuracy_run
from app.evaluate.audit import uncertainty
from app.reward.engine import Engine
from app.types import Item, Score

STEPS, TRIES = 10, 12


def climb(
    engine: Engine, name: str, answers: list[Item], words: list[str], progress: Progress
) -> dict[str, Any]:
    """How far greedy edits raise the reward of bad answers, and how far before the distance notices."""
    rng = Random(0)  # noqa: S311 # chance, not a secret
    here = list(dict.fromkeys(answers))
    start = accuracy_run.score(engine, name, here, progress, "before the climb")
    states = [[start[one] for one in here]]
    for step in range(STEPS):
        options = [[one, *(_edited(one, words, rng) for _ in range(TRIES))] for one in here]
        flat = list(dict.fromkeys(option for some in options for option in some))
        said = accuracy_run.score(engine, name, flat, lambda *_: None)
        here = [max(some, key=lambda one: said[one].reward) for some in options]
        states.append([said[one] for one in here])
        progress("climbing", (step + 1) / STEPS)
    return _told(states)


def _told(states: list[list[Score]]) -> dict[str, Any]:
    rewards = np.array([[score.reward for score in state] for state in states])
    strange = np.array([[score.distance >= uncertainty.STRANGE for score in state] for state in states])
    gains = rewards - rewards[:1]
    unnoticed = np.where(np.cumsum(strange, axis=0) > 0, 0.0, gains).max(axis=0)
    return {
        "answers": gains.shape[1],
        "edits": STEPS,
        "gain": [float(step) for step in gains.mean(1)],
        "gain_unnoticed": float(unnoticed.mean()),
        "strange_at_the_end": float(strange[-1].mean()),
    }


def _edited(answer: Item, words: list[str], rng: Random) -> Item:
    parts = answer.response.split(" ")
    place, word = rng.randrange(len(parts) + 1), rng.choice(words or ["yes"])
    kind = rng.choice(("put in", "exchange", "take out"))
    if kind == "put in" or place == len(parts):
        parts.insert(place, word)
    elif kind == "exchange":
        parts[place] = word
    elif len(parts) > 1:
        parts.pop(place)
    text = " ".join(parts)
    return Item(answer.messages, text) if text.strip() else answer
