"""Linear heads: signs, length debiasing, directions without a sign, and their choice by cross-validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad

from app.train.head import linear
from app.train.head.common import compute_rewards
from app.train.head.linear import fit_linear, merge_unsigned
from app.types import HeadKind
from tests.support.linear_training import CONFIG, accuracy, make_training_set
from tests.support.training_setup import ignore_progress


def test_weights_have_the_signs_of_their_directions() -> None:
    training_set = make_training_set()
    wrong = replace(training_set, signs=torch.tensor([-1.0, -1.0, 1.0, 0.0, 0.0, 0.0]))
    for trained in (training_set, wrong):
        weights = fit_linear(trained, CONFIG, ignore_progress).w1[:, 0]
        assert (weights[:, :3] * trained.signs[:3] >= 0).all()
    assert (fit_linear(wrong, CONFIG, ignore_progress).w1[:, 0, 0] == 0).all()


def test_rewards_have_mean_0_and_deviation_1_and_members_differ() -> None:
    training_set = make_training_set()
    finished: list[int] = []
    head = fit_linear(training_set, CONFIG, finished.append)
    rewards = head.score_members(head.standardise(training_set.projections.flatten(0, 1)))
    assert torch.allclose(rewards.mean(0), torch.zeros(4).double(), atol=1e-6)
    assert torch.allclose(rewards.std(0), torch.ones(4).double(), atol=1e-6)
    assert not torch.equal(head.w1[0, 0, :3], head.w1[1, 0, :3])
    assert head.kind is HeadKind.LINEAR
    assert finished == [1, 2, 3, 4]


def test_the_rest_explains_only_what_the_signed_directions_leave() -> None:
    training_set = make_training_set()
    without = accuracy(training_set, replace(CONFIG, rest_ridge=0.0))
    with_rest = accuracy(training_set, replace(CONFIG, rest_ridge=0.01))
    assert without > 0.8
    assert with_rest > without + 0.03


def test_merging_the_rest_keeps_the_rewards() -> None:
    training_set = make_training_set()
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q.T
    rotated = replace(training_set, projections=training_set.projections @ basis.T)
    head = fit_linear(rotated, CONFIG, ignore_progress)
    merged, directions = merge_unsigned(head, basis, rotated)
    assert directions.shape == (4, 6)
    assert torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-5)
    x = training_set.projections
    assert torch.allclose(
        compute_rewards(merged, x @ directions.T), compute_rewards(head, x @ basis.T), atol=1e-4
    )
    merged_inputs = merged.standardise(x @ directions.T).flatten(0, 1)
    assert float(merged_inputs[:, 3].std()) == pytest.approx(1.0, abs=1e-4)


def test_without_a_rest_nothing_is_merged() -> None:
    training_set = make_training_set()
    head = fit_linear(training_set, replace(CONFIG, rest_ridge=0.0), ignore_progress)
    merged, directions = merge_unsigned(head, torch.eye(6), training_set)
    assert (directions.shape, merged.w1.shape) == ((3, 6), (4, 1, 3))
    signed = replace(training_set, signs=torch.ones(6))
    assert merge_unsigned(head, torch.eye(6), signed)[0] is head


def test_length_debiasing_keeps_length_out_of_the_weights() -> None:
    training_set = make_training_set(length_effect=1.0)
    # a direction that measures length and says nothing else about quality
    projections = training_set.projections.clone()
    projections[:, :, 2] = training_set.token_counts.double().log2().float()
    training_set = replace(training_set, projections=projections)
    weights = [
        float(fit_linear(training_set, config, ignore_progress).w1[:, 0, 2].mean())
        for config in (replace(CONFIG, length_debiasing=share) for share in (0.0, 0.5, 1.0))
    ]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=0.1)
    assert weights[2] < 0.25 * weights[0]


def test_the_gradient_of_the_loss_is_exact() -> None:
    generator = np.random.default_rng(0)
    x, offset = generator.normal(size=(30, 4)), generator.normal(size=30)
    weights, penalties = generator.random(30), np.array([0.1, 0.2, 0.0, 1.0])
    shares = weights / weights.sum()
    loss = linear.LogisticLoss(x, shares, penalties, offset)
    at = generator.normal(size=4)
    assert check_grad(lambda c: loss(c)[0], lambda c: loss(c)[1], at) < 1e-6


def test_augmented_pairs_lower_the_weight_of_what_they_fake() -> None:
    training_set = make_training_set()
    faked = training_set.projections[:200].clone()
    faked[:, 1, 0] += 6.0
    augmented = training_set.with_augmented(faked, training_set.groups[:200], training_set.token_counts[:200])
    plain, taught = (
        fit_linear(each, CONFIG, ignore_progress).w1[:, 0].abs().mean(0) for each in (training_set, augmented)
    )
    assert taught[0] / taught[1] < 0.5 * plain[0] / plain[1]
