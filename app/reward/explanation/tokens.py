"""Shares of single tokens in contributions: the exact split of a mean, and differences of prefixes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.reward.head import Head
from app.reward.passages import ResponseSpans


def split_contributions(
    head: Head, spans: ResponseSpans, weights: Tensor, steered: Tensor, token_inputs: Tensor
) -> Tensor:
    """Split the contributions of a batch of responses, (B, K), over their tokens: (T, K).

    `token_inputs` (T, K) are the standardised and steered projections of the tokens of all responses. Each
    span's projections `steered` (W, K) are the mean of those of its tokens, so a token's share in a span's
    contribution is its input times the gradient along the span's path, over the number of the span's tokens.
    """
    gradient = head.compute_path_gradient(steered, torch.zeros_like(steered[:1]))
    counts = spans.ends - spans.starts
    slopes = gradient * (weights / counts)[:, None]
    whole, passages = spans.num_responses, len(counts) > spans.num_responses
    token_slopes = slopes[:whole].repeat_interleave(counts[:whole], dim=0)
    if passages:  # those of all responses follow each other and cover all tokens
        token_slopes = token_slopes + slopes[whole:].repeat_interleave(counts[whole:], dim=0)
    return token_inputs * token_slopes


def compute_prefix_credits(baseline: float, prefix_rewards: Sequence[float]) -> list[float]:
    """Return by how much each token changes the reward when it is appended to the text before it."""
    return [
        after - before for before, after in zip([baseline, *prefix_rewards], prefix_rewards, strict=False)
    ]
