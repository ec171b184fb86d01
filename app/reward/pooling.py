"""Pooling: which tokens of a turn are pooled, how, and which tokens get credit.

To add a pooling, add a member to `app.types.Pooling` and handle it in each function here. Training computes
the pooled residuals of every pooling at once, in app/train/features.py.
"""

import torch
from torch import Tensor

from app.types import AssistantTurn, Pooling


def pooled_span(pooling: Pooling, turn: AssistantTurn) -> tuple[int, int]:
    """Return [start, end) of the tokens whose residuals are pooled."""
    match pooling:
        case Pooling.MEAN:
            return turn.start, turn.end
        case Pooling.LAST:
            return turn.end - 1, turn.end
        case Pooling.END:
            return turn.end, turn.end + 1


def credited_span(pooling: Pooling, turn: AssistantTurn) -> tuple[int, int]:
    """Return [start, end) of the tokens that get credit: the turn's, and the closing token if pooled."""
    return turn.start, turn.end + (pooling is Pooling.END)


def mean_pool(values: Tensor, lengths: list[int]) -> Tensor:
    """Return the mean of each turn's rows; `values` are the rows of all turns, concatenated."""
    return torch.stack([rows.mean(0) for rows in torch.split(values, lengths)])
