"""Reading by passage: rolling means over windows of a response, beside the mean over the whole response.

The mean over a response dilutes a bad passage. A model with a passage reading therefore also scores windows
of a few lengths with the same head and combines the rewards:

    reward = (1 - share) * reward(whole response) + share * sum of weight * reward(window) over all windows

The weights of a response's windows sum to 1. They are a softmax of the negative rewards (the worst passages
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
from app.types import FORBID_EXTRA, ScoredPassage

STEPS_PER_WINDOW = 4
"""Windows of one length start at multiples of a quarter of that length, rounded down."""
MAX_LENGTHS = 8
MAX_SHARPNESS = 100.0


class PassageWeighting(StrEnum):
    """Which windows of a response count: the worst ones, the best ones, or all equally."""

    WORST = "worst"
    BEST = "best"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class PassageReading:
    """How a model reads passages: windows of `lengths` consecutive tokens.

    `sharpness` multiplies each reward before the softmax; `share` is the part of the reward that comes from
    passages.
    """

    __pydantic_config__ = FORBID_EXTRA
    lengths: tuple[int, ...]
    weighting: PassageWeighting
    sharpness: float
    share: float

    def __post_init__(self) -> None:
        is_valid = len(set(self.lengths)) == len(self.lengths) and 0 < len(self.lengths) <= MAX_LENGTHS
        if not is_valid or min(self.lengths) < STEPS_PER_WINDOW:
            raise ValueError(
                f"give 1 to {MAX_LENGTHS} different passage lengths of at least {STEPS_PER_WINDOW} tokens"
            )
        if not (0 < self.share <= 1 and 0 <= self.sharpness <= MAX_SHARPNESS):
            raise ValueError(f"passages need a share in (0, 1] and a sharpness in [0, {MAX_SHARPNESS:g}]")

    @property
    def signed_sharpness(self) -> float:
        """The factor of a window's reward in its softmax weight."""
        signs = {PassageWeighting.WORST: -1, PassageWeighting.BEST: 1, PassageWeighting.EQUAL: 0}
        return signs[self.weighting] * self.sharpness


@dataclass(frozen=True, slots=True)
class Windows:
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
        """Return the weighted sum of the windows' values (W, N) for each response, (B, N)."""
        sums = torch.zeros(self.num_responses, values.shape[1], dtype=values.dtype, device=values.device)
        return sums.index_add_(0, self.response_index, values * weights[:, None])


def build_windows(token_counts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Windows:
    """Return the whole responses and their windows of some lengths.

    `token_counts` are the pooled tokens of each response; the responses are concatenated.
    """
    offsets = list(accumulate(token_counts, initial=0))
    spans = [(start, end, index) for index, (start, end) in enumerate(pairwise(offsets))]
    spans += [
        (offsets[index] + start, offsets[index] + end, index)
        for index, count in enumerate(token_counts)
        for start, end in list_windows(count, lengths)
    ]
    starts, ends, response_index = copy_to_device(np.array(spans), device).unbind(1)
    return Windows(starts, ends, response_index, tuple(token_counts))


def list_windows(tokens: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return [start, end) of the windows of a response of `tokens` tokens.

    Windows of each length start at multiples of a quarter of it; the last one ends with the response. A
    response that is shorter than every length has no windows.
    """
    return [
        (start, start + length)
        for length in lengths
        if length <= tokens
        for start in (*range(0, tokens - length, _step(length)), tokens - length)
    ]


def compute_window_weights(windows: Windows, rewards: Tensor, reading: PassageReading | None) -> Tensor:
    """Return the weight of each window in the reward of its response, (W,).

    `rewards` (W,) are the windows' rewards. The weights of a response sum to 1; a response without passages
    is read as a whole.
    """
    count = windows.num_responses
    weights = torch.ones_like(rewards)
    if reading is None or len(rewards) == count:
        return weights
    response_index, logits = windows.response_index[count:], rewards[count:] * reading.signed_sharpness
    largest = rewards.new_full((count,), -math.inf).scatter_reduce(0, response_index, logits, "amax")
    exponentials = (logits - largest[response_index]).exp()
    totals = rewards.new_zeros(count).index_add_(0, response_index, exponentials)
    weights[count:] = reading.share * exponentials / totals[response_index]
    weights[:count] -= reading.share * (totals > 0).to(weights.dtype)
    return weights


def rank_passages(
    windows: Windows, weights: Tensor, rewards: Tensor, baseline: float
) -> list[list[ScoredPassage]]:
    """Return the passages of each response, largest weight first, without their texts."""
    offsets = windows.starts[windows.response_index]
    edges = (windows.starts - offsets, windows.ends - offsets)
    columns = (*edges, rewards, weights, weights * (rewards - baseline), windows.response_index)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))[windows.num_responses :]
    ranked: list[list[ScoredPassage]] = [[] for _ in range(windows.num_responses)]
    for start, end, reward, weight, contribution, index in sorted(rows, key=lambda row: -row[3]):
        ranked[index].append(ScoredPassage(start, end, "", reward, weight, contribution))
    return ranked


def select_non_overlapping(passages: Sequence[ScoredPassage], limit: int) -> list[ScoredPassage]:
    """Return the first `limit` passages that do not overlap with an earlier one."""
    selected: list[ScoredPassage] = []
    for passage in passages:
        if len(selected) == limit:
            break
        if all(passage.end <= other.start or other.end <= passage.start for other in selected):
            selected.append(passage)
    return selected


def compute_prefix_rewards(
    prefix_rewards: Tensor, window_rewards: Sequence[Tensor], reading: PassageReading
) -> Tensor:
    """Return for each token the reward if the response ended there, (T,).

    `prefix_rewards` (T,) are the rewards of the means over all tokens so far. `window_rewards` has for each
    length the rewards of the windows that end at each token, (T - length + 1,).
    """
    tokens, sharpness = len(prefix_rewards), reading.signed_sharpness
    low = min((float(rewards.min()) for rewards in window_rewards if len(rewards)), default=0.0) - 1
    totals: list[Tensor] = []
    sums: list[Tensor] = []
    for length, rewards in zip(reading.lengths, window_rewards, strict=True):
        if length > tokens:
            continue
        logits, step = rewards * sharpness, _step(length)
        is_regular = torch.arange(len(rewards), device=rewards.device) % step == 0
        for collected, values in ((totals, logits), (sums, logits + (rewards - low).log())):
            regular = torch.where(is_regular, values, -math.inf).logcumsumexp(0)
            tail = torch.where(is_regular, -math.inf, values)
            padding = rewards.new_full((length - 1,), -math.inf)
            collected.append(torch.cat([padding, torch.logaddexp(regular, tail)]))
    if not totals:
        return prefix_rewards
    total, weighted = (torch.stack(collected).logsumexp(0) for collected in (totals, sums))
    passages = (weighted - total).exp() + low
    mixed = (1 - reading.share) * prefix_rewards + reading.share * passages
    return torch.where(total.isneginf(), prefix_rewards, mixed)


def compute_rolling_means(values: Tensor, length: int) -> Tensor:
    """Return the means of all windows of one length, by their ends, (T - length + 1, K), in float64."""
    sums = _cumulate(values.double())
    return (sums[length:] - sums[: len(sums) - length]) / length if length <= len(values) else sums[:0]


def _step(length: int) -> int:
    return length // STEPS_PER_WINDOW


def _cumulate(values: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ... T rows, (T + 1, K)."""
    return torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)])
