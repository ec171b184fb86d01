"""Preference pairs whose preferences are known functions of directions and lengths, for linear heads."""

import torch

from app.train.head.common import compute_rewards
from app.train.head.linear import LinearHeadConfig, fit_linear
from app.train.head.training_set import TrainingSet
from tests.support.training_setup import ignore_progress

CONFIG = LinearHeadConfig(heads=4, ridge=0.01, rest_ridge=0.3, length_debiasing=0.0)
SIGNS = torch.tensor([1.0, -1.0, 1.0, 0.0, 0.0, 0.0])
NUM_PAIRS = 400


def make_training_set(*, length_effect: float = 0.0, seed: int = 0) -> TrainingSet:
    """Return pairs whose preference depends on the first two directions, the fourth and the length."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(NUM_PAIRS, 2, 6, generator=generator) * torch.tensor([1.0, 2, 1, 3, 1, 1]) + 4
    tokens = torch.randint(4, 200, (NUM_PAIRS, 2), generator=generator)
    quality = vectors @ torch.tensor([1.0, -0.5, 0.0, 0.2, 0.0, 0.0])
    quality += length_effect * tokens.double().log2().float()
    quality += torch.randn(NUM_PAIRS, 2, generator=generator) * 0.3
    order = quality.argsort(dim=1, descending=True)
    vectors = vectors.gather(1, order[:, :, None].expand(-1, -1, 6))
    groups = [str(i // 2) for i in range(NUM_PAIRS)]
    return TrainingSet.from_vectors(
        vectors, torch.eye(6), groups, token_counts=tokens.gather(1, order), signs=SIGNS
    )


def accuracy(training_set: TrainingSet, config: LinearHeadConfig) -> float:
    """The share of the pairs of another draw that a head ranks right."""
    head = fit_linear(training_set, config, ignore_progress)
    rewards = compute_rewards(head, make_training_set(seed=1).projections)
    return float((rewards[:, 0] > rewards[:, 1]).double().mean())
