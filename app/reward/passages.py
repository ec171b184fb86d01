"""Reading by passage: the sentences of a response, beside the mean over the whole response.

The mean over a response dilutes a bad passage. A model with a passage reading therefore also scores the mean
of each sentence with the same head and combines the rewards:

    reward = (1 - share) * reward(whole response) + share * sum of weight * reward(passage) over all passages

The weights of a response's passages sum to 1. They are a softmax of the negative rewards (the worst passages
count), of the rewards (the best ones count), or all equal. Given the weights, the reward is a weighted sum of
head outputs, so contributions of features and of passages stay exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from app.backbone.runtime.transfer import copy_to_device
from app.backbone.tokenization import SENTENCE_ENDS
from app.scores import ScoredPassage
from app.types import FORBID_EXTRA, AssistantTurn, EncodedItem

MIN_PASSAGE_TOKENS = 4
"""Tokens that a passage has at least; a shorter sentence belongs to the next one, or to the last."""
MAX_PASSAGE_TOKENS = 32
"""Tokens after which a passage ends within a sentence, so that text without full stops has passages, too."""
PASSAGE_RULE = f"{MIN_PASSAGE_TOKENS}-{MAX_PASSAGE_TOKENS}-{sorted(SENTENCE_ENDS)!a}"
"""Everything that determines which passages a response has, as a key for caches."""
MAX_SHARPNESS = 100.0


class PassageWeighting(StrEnum):
    """Which passages of a response count: the worst ones, the best ones, or all equally."""

    WORST = "worst"
    BEST = "best"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class PassageReading:
    """How a model reads passages.

    `sharpness` multiplies each reward before the softmax; `share` is the part of the reward that comes from
    passages.
    """

    __pydantic_config__ = FORBID_EXTRA
    weighting: PassageWeighting
    sharpness: float
    share: float

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.sharpness <= MAX_SHARPNESS):
            raise ValueError(f"passages need a share in (0, 1] and a sharpness in [0, {MAX_SHARPNESS:g}]")

    @property
    def signed_sharpness(self) -> float:
        """The factor of a passage's reward in its softmax weight."""
        signs = {PassageWeighting.WORST: -1, PassageWeighting.BEST: 1, PassageWeighting.EQUAL: 0}
        return signs[self.weighting] * self.sharpness


@dataclass(frozen=True, slots=True)
class ResponseSpans:
    """Spans of a batch of responses: `starts` and `ends` in concatenated tokens, and their responses.

    The first spans are the whole responses, of `token_counts` tokens; their passages follow.
    """

    starts: Tensor
    ends: Tensor
    response_index: Tensor
    token_counts: tuple[int, ...]

    @property
    def num_responses(self) -> int:
        """Number of responses."""
        return len(self.token_counts)

    def pool_passages(self, values: Tensor) -> Tensor:
        """Return the mean of the rows of `values` (T, K) in each passage, in float64, (W - B, K).

        Rows are summed up for each response by itself, so one with NaN does not change the others.
        """
        responses = torch.split(values.double(), list(self.token_counts))
        sums = torch.cat([_cumulate(rows) for rows in responses])
        starts, ends = (
            (edges + self.response_index)[self.num_responses :] for edges in (self.starts, self.ends)
        )
        return (sums[ends] - sums[starts]) / (ends - starts)[:, None]

    def sum_by_response(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return the weighted sum of the spans' values (W, N) for each response, (B, N)."""
        sums = torch.zeros(self.num_responses, values.shape[1], dtype=values.dtype, device=values.device)
        return sums.index_add_(0, self.response_index, values * weights[:, None])


def mark_sentence_ends(encoded: EncodedItem, turn: AssistantTurn) -> list[bool]:
    """Return for each token of a turn whether it ends a sentence."""
    return [index in encoded.sentence_ends for index in range(turn.start, turn.end)]


def find_passages(
    encoded: EncodedItem, turn: AssistantTurn, reading: PassageReading | None
) -> list[tuple[int, int]]:
    """Return [start, end) of the passages of a turn; none without a reading."""
    return list_passages(mark_sentence_ends(encoded, turn)) if reading else []


def list_passages(ends_sentence: Sequence[bool]) -> list[tuple[int, int]]:
    """Return [start, end) of the passages of a response; each token of it says whether it ends a sentence.

    Together they cover the response. A passage depends only on the tokens up to its end, except that up to
    three tokens left at the end of the response extend the last one.
    """
    passages: list[tuple[int, int]] = []
    start = 0
    for end, is_end in enumerate(ends_sentence, 1):
        if _closes_passage(end - start, ends_sentence=is_end):
            passages.append((start, end))
            start = end
    rest = len(ends_sentence) - start
    if passages and 0 < rest < MIN_PASSAGE_TOKENS:
        start = passages.pop()[0]
    return [*passages, (start, len(ends_sentence))] if rest else passages


def build_spans(
    token_counts: Sequence[int], passages: Sequence[Sequence[tuple[int, int]]], device: torch.device
) -> ResponseSpans:
    """Return the whole responses and their passages, which are empty if none are read.

    `token_counts` are the pooled tokens of each response; the responses are concatenated.
    """
    offsets = list(accumulate(token_counts, initial=0))
    rows = [(start, end, index) for index, (start, end) in enumerate(pairwise(offsets))]
    rows += [
        (offsets[index] + start, offsets[index] + end, index)
        for index, response_passages in enumerate(passages)
        for start, end in response_passages
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    starts, ends, response_index = copy_to_device(table, device).unbind(1)
    return ResponseSpans(starts, ends, response_index, tuple(token_counts))


def compute_span_weights(spans: ResponseSpans, rewards: Tensor, reading: PassageReading | None) -> Tensor:
    """Return the weight of each span in the reward of its response, (W,).

    `rewards` (W,) are the spans' rewards. The weights of a response sum to 1; a response without passages
    is read as a whole.
    """
    count = spans.num_responses
    weights = torch.ones_like(rewards)
    if reading is None or len(rewards) == count:
        return weights
    response_index, logits = spans.response_index[count:], rewards[count:] * reading.signed_sharpness
    largest = rewards.new_full((count,), -math.inf).scatter_reduce(0, response_index, logits, "amax")
    exponentials = (logits - largest[response_index]).exp()
    totals = rewards.new_zeros(count).index_add_(0, response_index, exponentials)
    weights[count:] = reading.share * exponentials / totals[response_index]
    weights[:count] -= reading.share * (totals > 0).to(weights.dtype)
    return weights


def rank_passages(
    spans: ResponseSpans, weights: Tensor, rewards: Tensor, baseline: float
) -> list[list[ScoredPassage]]:
    """Return the passages of each response, largest weight first, without their texts."""
    offsets = spans.starts[spans.response_index]
    edges = (spans.starts - offsets, spans.ends - offsets)
    columns = (*edges, rewards, weights, weights * (rewards - baseline), spans.response_index)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))[spans.num_responses :]
    ranked: list[list[ScoredPassage]] = [[] for _ in range(spans.num_responses)]
    for start, end, reward, weight, contribution, index in sorted(rows, key=lambda row: -row[3]):
        ranked[index].append(ScoredPassage(start, end, "", reward, weight, contribution))
    return ranked


def _closes_passage(length: int, *, ends_sentence: bool) -> bool:
    """Return whether a passage of so many tokens ends with its last one."""
    return length == MAX_PASSAGE_TOKENS or (ends_sentence and length >= MIN_PASSAGE_TOKENS)


def _cumulate(values: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ... T rows, (T + 1, K)."""
    return torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)])
