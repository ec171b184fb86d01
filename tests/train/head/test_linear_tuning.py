"""The hyperparameters of linear heads are chosen on held-out prompts."""

from dataclasses import replace

import torch

from app.train.head import linear_tuning
from app.train.head.linear import fit_linear
from app.train.head.linear_tuning import tune_linear
from tests.support.linear_training import CONFIG, accuracy, make_training_set
from tests.support.training_setup import ignore_progress


def test_tuning_keeps_what_it_does_not_tune() -> None:
    shares: list[float] = []
    tuned = tune_linear(make_training_set(), replace(CONFIG, length_debiasing=0.5, seed=3), shares.append)
    assert (tuned.heads, tuned.length_debiasing, tuned.seed) == (CONFIG.heads, 0.5, 3)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_tuning_bounds_the_share_of_the_rest() -> None:
    training_set = make_training_set()
    config = tune_linear(training_set, CONFIG, ignore_progress)
    assert (config.heads, config.seed) == (CONFIG.heads, CONFIG.seed)
    head = fit_linear(training_set, config, ignore_progress)
    x = head.standardise(training_set.projections)
    sizes = ((x[:, 0] - x[:, 1]) * head.w1[:, 0].mean(0)).abs().mean(0)
    rest = (((x[:, 0] - x[:, 1]) * head.w1[:, 0].mean(0))[:, 3:].sum(1)).abs().mean()
    assert float(rest / (rest + sizes[:3].sum())) <= linear_tuning.MAX_REST_SHARE + 0.05
    assert tune_linear(training_set, replace(CONFIG, rest_ridge=0.0), ignore_progress).rest_ridge == 0.0


def test_tuning_a_head_without_signs_chooses_the_ridge_of_the_rest() -> None:
    training_set = replace(make_training_set(), signs=torch.zeros(6))
    config = tune_linear(training_set, CONFIG, ignore_progress)
    assert config.rest_ridge in linear_tuning.REST_RIDGES
    assert accuracy(training_set, config) > 0.9
