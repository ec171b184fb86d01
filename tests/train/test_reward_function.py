"""Rewards of extracted pairs with and without passages."""

import pytest
import torch

from app.reward.head import Head
from app.reward.passages import PassageReading, PassageWeighting
from app.train.features import PairFeatures
from app.train.passage_features import summarise_passages
from app.train.reward_function import RewardFunction
from app.types import HeadKind, Pooling

WIDTH, LAYER = 5, 1
READING = PassageReading(PassageWeighting.WORST, sharpness=2.0, share=0.6)


def make_function() -> RewardFunction:
    """Return a linear reward function of two directions."""
    generator = torch.Generator().manual_seed(0)
    head = Head(
        torch.randn(2, generator=generator), torch.ones(2) * 2, torch.randn(3, 1, 2, generator=generator),
        torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3), HeadKind.LINEAR,
    ).to(torch.device("cpu"))  # fmt: skip
    return RewardFunction(torch.randn(2, WIDTH, generator=generator), head, LAYER, Pooling.MEAN)


def make_features(counts: list[int]) -> tuple[PairFeatures, list[torch.Tensor]]:
    """Return consecutive pairs of responses, and the residuals of their tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(count, WIDTH, generator=generator) for count in counts]
    pooled = torch.stack([torch.stack([r.mean(0), r[-1], r[-1]]) for r in rows])
    index = torch.arange(len(rows)).reshape(-1, 2)
    summaries = [summarise_passages(r, [i % 8 == 7 for i in range(len(r))]) for r in rows]
    return PairFeatures(index, torch.tensor(counts), {LAYER: pooled}, [], 0, summaries), rows


def test_without_passages_rewards_are_those_of_the_means() -> None:
    function, (features, rows) = make_function(), make_features([20, 40, 9, 16])
    means = torch.stack([r.mean(0) for r in rows])
    expected = function.head.score_members(function.project_residuals(means)).mean(1).reshape(-1, 2)
    assert torch.allclose(function.compute_rewards(features), expected, atol=1e-5)
    assert torch.equal(function.with_passages(None, features).directions, function.directions)


def test_passages_change_only_responses_of_more_than_one_sentence() -> None:
    function, (features, _) = make_function(), make_features([20, 40, 9, 7])
    plain = function.compute_rewards(features)
    reading = RewardFunction(function.directions, function.head, LAYER, Pooling.MEAN, READING)
    rewards = reading.compute_rewards(features)
    assert torch.allclose(rewards[1], plain[1], atol=1e-3)
    assert ((rewards[0] - plain[0]).abs() > 0.01).all()


def test_standardising_keeps_the_weights_of_the_spans() -> None:
    function, (features, _) = make_function(), make_features([20, 40, 90, 16, 33, 70])
    raw = RewardFunction(function.directions, function.head, LAYER, Pooling.MEAN, READING).compute_rewards(
        features
    )
    standardised = function.with_passages(READING, features)
    rewards = standardised.compute_rewards(features)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-6)
    assert float(rewards.std()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(rewards, (raw - raw.mean()) / raw.std(), atol=1e-6)


def test_a_subset_of_the_pairs_has_the_same_rewards() -> None:
    function, (features, _) = make_function(), make_features([20, 40, 90, 16, 33, 70])
    standardised = function.with_passages(READING, features)
    subset = standardised.compute_rewards(features.subset([2, 0]))
    assert torch.allclose(subset, standardised.compute_rewards(features)[[2, 0]])


def test_spans_that_are_not_read_do_not_count() -> None:
    function, (features, _) = make_function(), make_features([20, 40, 90, 16])
    spans = function.score_spans(features, with_passages=True)
    assert torch.allclose(spans.combine(None), function.compute_rewards(features))
