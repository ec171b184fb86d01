"""The hyperparameters of linear heads are chosen on held-out prompts."""

from dataclasses import replace

import torch

from app.train.head import linear_tuning
from app.train.head.linear import fit_linear
from app.train.head.linear_tuning import tune_linear
from app.train.head.training_set import TrainingSet
from tests.support.linear_training import CONFIG, accuracy, make_training_set
from tests.support.training_setup import ignore_progress


def make_set_with_length(length_effect: float) -> TrainingSet:
    """Return pairs whose third direction projects on the length, which preferences depend on."""
    training_set = make_training_set(length_effect=length_effect)
    projections = training_set.projections.clone()
    projections[:, :, 2] = training_set.token_counts.double().log2().float()
    return replace(training_set, projections=projections)


def test_tuning_takes_the_length_debiasing_with_which_longer_and_shorter_are_judged_alike() -> None:
    training_set, shares = make_set_with_length(0.5), list[float]()
    tuned = tune_linear(training_set, replace(CONFIG, length_debiasing=None), shares.append)
    assert tuned.length_debiasing not in (None, 0.0, 1.0)
    assert shares[-1] == 1.0
    configs = [replace(tuned, length_debiasing=share) for share in linear_tuning.LENGTH_DEBIASINGS]
    gaps = {
        trial.config.length_debiasing: trial.length_gap
        for trial in linear_tuning.Tuning.from_training_set(training_set, CONFIG.seed).run(
            configs, ignore_progress
        )
    }
    assert gaps[tuned.length_debiasing] < min(gaps[0.0], gaps[1.0])


def test_tuning_takes_no_length_debiasing_that_costs_accuracy() -> None:
    config = replace(CONFIG, length_debiasing=None)
    assert tune_linear(make_set_with_length(3.0), config, ignore_progress).length_debiasing == 0.0


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
