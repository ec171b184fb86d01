"""Residuals of responses by passage, as training needs them to read the sentences of a response."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.reward.passages import list_passages

MAX_HALF = torch.finfo(torch.half).max


def summarise_passages(rows: Tensor, ends_sentence: Sequence[bool]) -> dict[str, Tensor]:
    """Return the passages of a response (S, 2), and the means of its residuals (T, D) in them as float16.

    Each token says whether it ends a sentence.
    """
    spans = list_passages(ends_sentence)
    means = torch.stack([rows[start:end].mean(0) for start, end in spans])
    return {"spans": torch.tensor(spans), "means": means.clamp(-MAX_HALF, MAX_HALF).half().cpu()}


def project_passages(passages: Sequence[Mapping[str, Tensor]], directions: Tensor) -> Tensor:
    """Return the projections on `directions` (K, D) of the passages of all responses, (W, K)."""
    means = [passage["means"].float() @ directions.T for passage in passages]
    return torch.cat(means) if means else directions.new_zeros(0, len(directions))
