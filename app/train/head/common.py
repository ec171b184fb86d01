"""Shared by all kinds of heads: folds and bootstrap samples over prompts, weights, standardised rewards."""

from dataclasses import replace

import torch
from torch import Tensor

from app.data.pairs import hash_to_unit_interval
from app.reward.head import Head
from app.train.head.training_set import TrainingSet

AUGMENTED_WEIGHT = 0.4
"""Weight of an augmented or control pair in the loss; an original pair has weight 1."""
MIN_SCALE = 1e-6
"""Smallest standard deviation that is divided by, so that a constant projection stays finite."""


def compute_rewards(head: Head, projections: Tensor) -> Tensor:
    """Return the ensemble's rewards of (N, 2, K) projections, (N, 2)."""
    return head.score_members(head.standardise(projections.flatten(0, 1))).mean(1).reshape(-1, 2)


def assign_folds(groups: list[str], count: int, seed: int) -> Tensor:
    """Return a fold for each pair, (N,). A prompt group is in one fold; folds differ by one group at most."""
    order = sorted(set(groups), key=lambda group: hash_to_unit_interval(f"{seed}/fold/{group}"))
    fold = {group: index % count for index, group in enumerate(order)}
    return torch.tensor([fold[group] for group in groups])


def pair_weights(training_set: TrainingSet) -> Tensor:
    """Return the weight of each pair in the loss, (N, 1)."""
    return torch.where(training_set.is_augmented, AUGMENTED_WEIGHT, 1.0)[:, None]


def draw_bootstrap_counts(groups: list[str], heads: int, seed: int) -> Tensor:
    """Draw prompt groups with replacement for each head; return how often each pair was drawn, (N, E)."""
    generator = torch.Generator().manual_seed(seed)
    index = {group: i for i, group in enumerate(sorted(set(groups)))}
    draws = torch.randint(len(index), (heads, len(index)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(index)) for draw in draws]).float()
    return counts.T[torch.tensor([index[group] for group in groups])]


def standardise_rewards(head: Head, projections: Tensor) -> Head:
    """Return the head with each member's rewards of (M, K) projections at mean 0, standard deviation 1."""
    exact = head.to(torch.device("cpu"))
    rewards = exact.score_members(exact.standardise(projections))
    mean, std = rewards.mean(0), rewards.std(0).clamp(min=MIN_SCALE)
    w2, b2 = exact.w2 / std[:, None], (exact.b2 - mean) / std
    return replace(head, w2=w2.float(), b2=b2.float()).to(torch.device("cpu"))
