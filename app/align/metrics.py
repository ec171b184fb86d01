"""What a policy is like after a round: whom it agrees with, what it says, how far it has gone.

Its implicit reward is what it finds likelier than the start does. Questions that came with several right and
wrong answers are asked as multiple choice. Test prompts are answered, and the answers rewarded and measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Conversation
from app.align.reward_scoring import Scorer
from app.evaluate.accuracy import Float64Array, bootstrap_mean
from app.types import Item, Pair

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its right answers, the best one of them first, and its wrong ones."""

    group: str
    right: tuple[Item, ...]
    wrong: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Exam:
    """What is measured after every round: the same pairs, questions and prompts each time."""

    pairs: tuple[Pair, ...]
    choices: tuple[Choice, ...]
    prompts: tuple[Conversation, ...]

    @property
    def exchanges(self) -> list[Item]:
        """Everything whose likelihood is asked for."""
        sides = [one for pair in self.pairs for one in pair.items]
        return [*sides, *(one for choice in self.choices for one in choice.right + choice.wrong)]


def exam(pairs: Sequence[Pair], compared: int, answered: int) -> Exam:
    """From test pairs: whole prompts until there are so many pairs, and the first so many prompts."""
    prompts = tuple(dict.fromkeys(pair.messages for pair in pairs))
    of: dict[Conversation, list[Pair]] = {turns: [] for turns in prompts}
    for pair in pairs:
        of[pair.messages].append(pair)
    taken: list[Pair] = []
    for turns in prompts:
        taken += of[turns] if len(taken) < compared else []
    return Exam(tuple(taken), tuple(_choices(taken)), prompts[:answered])


def likelihoods(policy: SequenceLogprobs, exam: Exam, report: Callable[[float], None]) -> list[float]:
    """Of every exchange of an exam."""
    return [float(tokens.sum()) for tokens in policy.compute(exam.exchanges, report)]


def agreement(exam: Exam, now: Sequence[float], start: Sequence[float]) -> dict[str, list[float]]:
    """Item by item, whom the policy agrees with.

    Of each test pair: how much likelier the preferred response has become than the other. Of each question:
    whether its best answer is the likeliest of it and the wrong ones (MC1), and which share of the likelihood
    of all its answers falls on right ones (MC2).
    """
    sides = np.array(now)[: 2 * len(exam.pairs)] - np.array(start)[: 2 * len(exam.pairs)]
    found = {"implicit": (sides[::2] - sides[1::2]).tolist(), "mc1": [], "mc2": []}
    rest = iter(now[2 * len(exam.pairs) :])
    for choice in exam.choices:
        right = np.array([next(rest) for _ in choice.right])
        wrong = np.array([next(rest) for _ in choice.wrong])
        found["mc1"].append(float(right[0] > wrong.max()))
        everything = np.exp(np.concatenate([right, wrong]) - max(right.max(), wrong.max()))
        found["mc2"].append(float(everything[: len(right)].sum() / everything.sum()))
    return found


def answers(
    exchanges: Sequence[Item],
    finished: Sequence[bool],
    now: SequenceLogprobs,
    start: SequenceLogprobs,
    report: Callable[[float], None],
) -> list[Row]:
    """Of each answer to a test prompt: its tokens, and how much likelier it has become.

    Where it was cut off, its end was nobody's choice and does not count.
    """
    gains = [
        late - early
        for late, early in zip(now.compute(exchanges, report), start.compute(exchanges), strict=True)
    ]
    return [
        {"tokens": len(gain) - 1, "gain": float(gain[: len(gain) - (not whole)].sum())}
        for whole, gain in zip(finished, gains, strict=True)
    ]


def rated(exchanges: Sequence[Item], scorers: Mapping[str, Scorer]) -> list[Row]:
    """Every reward of every answer, and its distance where that is known."""
    rows: list[Row] = [{} for _ in exchanges]
    for name, scored in scorers.items():
        for row, verdict in zip(rows, scored(exchanges), strict=True):
            row[name] = verdict.reward
            if verdict.distance is not None:
                row[f"{name} distance"] = verdict.distance
    return rows


def summary(exam: Exam, agreed: dict[str, list[float]], answered: list[Row]) -> Row:
    """Means with intervals by bootstrap over prompts; KL is a token's, estimated from the answers."""
    groups = [pair.group for pair in exam.pairs]
    found: Row = {"implicit accuracy": _mean((np.sign(agreed["implicit"]) + 1) / 2, groups)}
    for name in ("mc1", "mc2"):
        if exam.choices:
            found[name] = _mean(np.array(agreed[name]), [choice.group for choice in exam.choices])
    tokens = np.array([row["tokens"] for row in answered], dtype=float)
    numbers = [str(at) for at in range(len(answered))]
    for name in answered[0]:
        if name != "gain":
            found[name] = _mean(np.array([row[name] for row in answered], dtype=float), numbers)
    found["kl"] = sum(row["gain"] for row in answered) / max(float(tokens.sum()), 1.0)
    return found


def _mean(values: Float64Array, groups: list[str]) -> Row:
    found = asdict(bootstrap_mean(values, groups))
    return {"mean": found.pop("accuracy"), **found}


def _choices(pairs: Sequence[Pair]) -> list[Choice]:
    """Questions of rows that say they hold reference answers, and which of them is the best."""
    found: dict[Conversation, tuple[str, dict[Item, bool], dict[Item, None]]] = {}
    for pair in pairs:
        facts = dict(pair.attributes)
        if facts.get("kind") == "reference":
            _, right, wrong = found.setdefault(pair.messages, (pair.group, {}, {}))
            chosen, rejected = pair.items
            right[chosen] = right.get(chosen, False) or facts.get("best") == "True"
            wrong[rejected] = None
    return [
        Choice(group, tuple(sorted(right, key=lambda one: not right[one])), tuple(wrong))
        for group, right, wrong in found.values()
    ]
