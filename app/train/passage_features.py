"""Residuals of responses by passage, as training needs them to read windows of several lengths.

A window starts at a multiple of a quarter of its length or ends with the response. So the means over
consecutive blocks of a quarter of the shortest window, and over the last tokens, determine the mean of every
window, and take a quarter of the space of the tokens' residuals.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from app.reward.passages import STEPS_PER_WINDOW, list_windows

PASSAGE_LENGTHS = (8, 16, 32)
"""Window lengths in tokens that training can choose; each is a multiple of the one before."""
BLOCK_TOKENS = PASSAGE_LENGTHS[0] // STEPS_PER_WINDOW
MAX_HALF = torch.finfo(torch.half).max


def summarise_passages(rows: Tensor) -> dict[str, Tensor]:
    """Return the means of a response's residuals (T, D) over blocks and over its last tokens, as float16."""
    whole_blocks = rows[: len(rows) // BLOCK_TOKENS * BLOCK_TOKENS]
    blocks = whole_blocks.reshape(-1, BLOCK_TOKENS, rows.shape[1]).mean(1)
    tails = [rows[-length:].mean(0) for length in PASSAGE_LENGTHS if length <= len(rows)]
    last = torch.stack(tails) if tails else rows[:0]
    return {"blocks": _to_half(blocks), "tails": _to_half(last)}


def project_passages(
    passages: Sequence[Mapping[str, Tensor]],
    token_counts: Sequence[int],
    directions: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Return the projections on `directions` (K, D) of all windows of some lengths, (W, K).

    The windows are those of `list_windows`, response by response.
    """
    rows = [
        projected
        for passage, tokens in zip(passages, token_counts, strict=True)
        for projected in _project_windows(passage, tokens, directions, lengths)
    ]
    return torch.cat(rows) if rows else directions.new_zeros(0, len(directions))


def _project_windows(
    passage: Mapping[str, Tensor], tokens: int, directions: Tensor, lengths: Sequence[int]
) -> Iterator[Tensor]:
    """Yield the projections of one response's windows, length by length."""
    lengths = [length for length in lengths if length <= tokens]
    if not lengths:
        return
    blocks, tails = (passage[name].float() @ directions.T for name in ("blocks", "tails"))
    sums = torch.cat([torch.zeros_like(blocks[:1]), blocks.double().cumsum(0)])
    for length in lengths:
        *starts, _ = (start for start, _ in list_windows(tokens, [length]))
        first = torch.tensor(starts, dtype=torch.long) // BLOCK_TOKENS
        count = length // BLOCK_TOKENS
        yield ((sums[first + count] - sums[first]) / count).to(tails.dtype)
        yield tails[PASSAGE_LENGTHS.index(length)][None]


def _to_half(values: Tensor) -> Tensor:
    return values.clamp(-MAX_HALF, MAX_HALF).half().cpu()
