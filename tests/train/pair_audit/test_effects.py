"""Effects of concepts: win rates at equal length, their intervals, and which pairs are counted."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from app.train.features import PairFeatures
from app.train.pair_audit.effects import MIN_PAIRS, fit_intercepts, measure_effects
from tests.support import named_models
from tests.train.pair_audit.conftest import AuditedModel


def test_the_intercept_is_that_of_a_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    length = rng.normal(size=500)
    wins = (rng.random(500) < 1 / (1 + np.exp(-(0.8 + 1.5 * length)))).astype(float)
    weights = np.stack([np.ones(500), rng.integers(0, 3, 500)]).astype(float)
    for row, intercept in zip(weights, fit_intercepts(wins, length, weights), strict=True):
        reference = LogisticRegression(C=np.inf, tol=1e-8).fit(length[:, None], wins, row)
        assert intercept == pytest.approx(reference.intercept_[0], abs=0.01)


def test_coefficients_stay_finite_if_all_pairs_agree() -> None:
    (intercept,) = fit_intercepts(np.ones(30), np.zeros(30), np.ones((1, 30)))
    assert 3 < intercept < 20


def test_a_concept_of_preferred_words_is_preferred(audited: AuditedModel) -> None:
    """In the training pairs every chosen response has 'amber', and no rejected one does."""
    measured = measure_effects(audited.model, audited.features, audited.groups)
    effects = {effect.name: effect for effect in measured}
    raising = effects["raises"]
    assert raising.pairs >= MIN_PAIRS
    assert raising.win_rate is not None
    assert raising.win_rate > 0.9
    assert raising.controlled is not None
    assert raising.low is not None
    assert raising.high is not None
    assert 0.5 < raising.low <= raising.controlled <= raising.high <= 1
    assert len(raising.examples) == 5
    lowering = effects["lowers"]
    assert lowering.controlled is None or lowering.controlled < 0.5


def test_only_pairs_of_which_one_response_expresses_the_concept_are_counted(audited: AuditedModel) -> None:
    model, features = audited.model, audited.features
    index = features.response_index.clone()
    index[:, 1] = index[:, 0]
    same = PairFeatures(
        index, features.token_counts, features.residuals, features.latents, features.num_latents
    )
    for effect in measure_effects(model, same, audited.groups):
        assert (effect.pairs, effect.share, effect.controlled) == (0, 0.0, None)
    assert model.card.name == named_models.NAME
    assert torch.equal(features.response_index[:, 0], index[:, 0])
