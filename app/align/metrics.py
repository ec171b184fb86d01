"""Metrics of a policy after a round: agreement with people, rewards of its responses, KL, response length.

The implicit reward of a response is how much its log-probability has risen since the initial policy. Test
questions that have several right and wrong reference answers are also evaluated as multiple choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Conversation
from app.align.reward_functions import RewardFunction
from app.evaluate.accuracy import Float64Array, bootstrap_mean
from app.types import Item, Pair

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MultipleChoiceQuestion:
    """A question with its right answers, the best one first, and its wrong answers."""

    group: str
    right: tuple[Item, ...]
    wrong: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The pairs, questions and prompts that every round is evaluated on."""

    pairs: tuple[Pair, ...]
    questions: tuple[MultipleChoiceQuestion, ...]
    prompts: tuple[Conversation, ...]

    @property
    def items(self) -> list[Item]:
        """The items whose log-probabilities are needed: both sides of all pairs, then all answers."""
        pair_items = [item for pair in self.pairs for item in pair.items]
        return [
            *pair_items, *(item for question in self.questions for item in question.right + question.wrong),
        ]  # fmt: skip


def build_evaluation_set(pairs: Sequence[Pair], compared: int, answered: int) -> EvaluationSet:
    """Build the evaluation set from test pairs.

    It takes all pairs of one prompt after another until there are at least `compared` pairs, and the first
    `answered` prompts.
    """
    prompts = tuple(dict.fromkeys(pair.messages for pair in pairs))
    pairs_by_prompt: dict[Conversation, list[Pair]] = {prompt: [] for prompt in prompts}
    for pair in pairs:
        pairs_by_prompt[pair.messages].append(pair)
    selected: list[Pair] = []
    for prompt in prompts:
        selected += pairs_by_prompt[prompt] if len(selected) < compared else []
    return EvaluationSet(tuple(selected), tuple(_build_questions(selected)), prompts[:answered])


def sum_logprobs(
    policy: SequenceLogprobs, evaluation: EvaluationSet, progress: Callable[[float], None]
) -> list[float]:
    """Return the log-probability of the response of every item of the evaluation set."""
    return [float(tokens.sum()) for tokens in policy.compute(evaluation.items, progress)]


def measure_agreement(
    evaluation: EvaluationSet, current: Sequence[float], initial: Sequence[float]
) -> dict[str, list[float]]:
    """Return the agreement with people, one value per pair ("implicit") and per question ("mc1", "mc2").

    "implicit" is the implicit reward of the preferred minus that of the rejected response. "mc1" is 1 if the
    best answer of a question has a higher log-probability than all wrong ones. "mc2" is the share of the
    probability of all answers that falls on right ones.
    """
    count = 2 * len(evaluation.pairs)
    implicit_rewards = np.array(current)[:count] - np.array(initial)[:count]
    margins = (implicit_rewards[::2] - implicit_rewards[1::2]).tolist()
    agreement: dict[str, list[float]] = {"implicit": margins, "mc1": [], "mc2": []}
    logprobs = iter(current[count:])
    for question in evaluation.questions:
        right = np.array([next(logprobs) for _ in question.right])
        wrong = np.array([next(logprobs) for _ in question.wrong])
        agreement["mc1"].append(float(right[0] > wrong.max()))
        probabilities = np.exp(np.concatenate([right, wrong]) - max(right.max(), wrong.max()))
        agreement["mc2"].append(float(probabilities[: len(right)].sum() / probabilities.sum()))
    return agreement


def measure_responses(
    items: Sequence[Item],
    finished: Sequence[bool],
    current: SequenceLogprobs,
    initial: SequenceLogprobs,
    progress: Callable[[float], None],
) -> list[Row]:
    """Return the token count of each response, and the gain of its log-probability over the initial policy.

    The closing token of a response that was cut off is not counted, since the policy did not generate it.
    """
    gains = [
        after - before
        for after, before in zip(current.compute(items, progress), initial.compute(items), strict=True)
    ]
    return [
        {"tokens": len(gain) - 1, "gain": float(gain[: len(gain) - (not complete)].sum())}
        for complete, gain in zip(finished, gains, strict=True)
    ]


def score_responses(items: Sequence[Item], reward_functions: Mapping[str, RewardFunction]) -> list[Row]:
    """Return every reward of every response, and its distance if it is known."""
    rows: list[Row] = [{} for _ in items]
    for name, compute_rewards in reward_functions.items():
        for row, item_reward in zip(rows, compute_rewards(items), strict=True):
            row[name] = item_reward.reward
            if item_reward.distance is not None:
                row[f"{name} distance"] = item_reward.distance
    return rows


def summarize(evaluation: EvaluationSet, agreement: dict[str, list[float]], responses: list[Row]) -> Row:
    """Return means with bootstrap intervals over prompts, and the KL per token estimated from responses."""
    groups = [pair.group for pair in evaluation.pairs]
    summary: Row = {"implicit accuracy": _mean((np.sign(agreement["implicit"]) + 1) / 2, groups)}
    question_groups = [question.group for question in evaluation.questions]
    for name in ("mc1", "mc2"):
        if evaluation.questions:
            summary[name] = _mean(np.array(agreement[name]), question_groups)
    token_counts = np.array([row["tokens"] for row in responses], dtype=float)
    response_groups = [str(index) for index in range(len(responses))]
    for name in responses[0]:
        if name != "gain":
            values = np.array([row[name] for row in responses], dtype=float)
            summary[name] = _mean(values, response_groups)
    summary["kl"] = sum(row["gain"] for row in responses) / max(float(token_counts.sum()), 1.0)
    return summary


def _mean(values: Float64Array, groups: list[str]) -> Row:
    row = asdict(bootstrap_mean(values, groups))
    return {"mean": row.pop("accuracy"), **row}


def _build_questions(pairs: Sequence[Pair]) -> list[MultipleChoiceQuestion]:
    """Return a question for each prompt whose pairs are marked as reference answers (kind=reference)."""
    questions: dict[Conversation, tuple[str, dict[Item, bool], dict[Item, None]]] = {}
    for pair in pairs:
        attributes = dict(pair.attributes)
        if attributes.get("kind") == "reference":
            _, right, wrong = questions.setdefault(pair.messages, (pair.group, {}, {}))
            chosen, rejected = pair.items
            right[chosen] = right.get(chosen, False) or attributes.get("best") == "True"
            wrong[rejected] = None
    return [
        MultipleChoiceQuestion(group, tuple(sorted(right, key=lambda item: not right[item])), tuple(wrong))
        for group, right, wrong in questions.values()
    ]
