"""Contrasts on tiny real models: contributions to margins, sizes, and effects against a feature's sign."""

from dataclasses import replace

import pytest
import torch

from app.evaluate.audit import contrasts
from app.reward.engine import Engine
from app.reward.explanation.contributions import explain_margin
from app.reward.head import Head
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.types import HeadKind
from tests.support import spread_models, tiny

ITEMS = tiny.random_items(80)


def with_signs(model: RewardModel, signs: list[int]) -> RewardModel:
    """Return the model with other signs of its features."""
    features = zip(model.features, signs, strict=True)
    return replace(model, features=tuple(replace(feature, sign=sign) for feature, sign in features))


def make_signed_model(model: RewardModel) -> RewardModel:
    """Return the model with a linear head whose weights have the signs of the features."""
    signs = torch.tensor([feature.sign for feature in model.features]).double()
    sizes = torch.rand(2, 1, tiny.K, generator=torch.Generator().manual_seed(0)).double() + 0.1
    zero, one = torch.zeros(2, 1).double(), torch.ones(2, 1).double()
    head = Head(model.head.center, model.head.scale, sizes * signs, zero, one, zero[:, 0], HeadKind.LINEAR)
    return replace(model, head=head, card=replace(model.card, head_kind=HeadKind.LINEAR))


def score_pairs(engine: Engine, model: RewardModel) -> list[tuple[Score, Score]]:
    """Score 40 pairs of random responses with a model."""
    scores = spread_models.score(engine, model, ITEMS)
    return list(zip(scores[::2], scores[1::2], strict=True))


def make_models(engine: Engine) -> dict[str, RewardModel]:
    """Return a network, a network that reads passages, and a linear head for each reading."""
    alpha, delta = (spread_models.spread(engine, name, ITEMS) for name in ("alpha", "delta"))
    return {
        "network": alpha,
        "network with passages": delta,
        "linear": make_signed_model(alpha),
        "linear with passages": make_signed_model(delta),
    }


@pytest.mark.parametrize("kind", ["network", "network with passages", "linear", "linear with passages"])
def test_contributions_are_those_of_the_explained_margins(engine: Engine, kind: str) -> None:
    model = make_models(engine)[kind]
    pairs = score_pairs(engine, model)
    contributions, differences = contrasts.compute_margin_contributions(model, pairs)
    for row, (chosen, rejected) in enumerate(pairs):
        assert float(contributions[row].sum()) == pytest.approx(chosen.reward - rejected.reward, abs=1e-3)
        for shown in explain_margin(model, chosen, rejected, tiny.K):
            k = model.index_by_latent[shown.feature.latent]
            assert float(contributions[row, k]) == pytest.approx(shown.contribution, abs=1e-9)
            scaled = shown.projection / float(model.head.scale[k])
            assert float(differences[row, k]) == pytest.approx(scaled, abs=1e-5)
    results = contrasts.evaluate_contrasts(model, pairs)
    assert 1 <= results["features_for_half"] <= tiny.K / 2
    assert results["cancellation"] >= 1
    assert results["most_used_share"] == pytest.approx(1)
    assert results["unsigned_share"] == 0
    assert 0 <= results["contradictions"] <= 1


def test_only_large_margins_are_measured(engine: Engine) -> None:
    model = make_models(engine)["linear"]
    pairs = score_pairs(engine, model)
    margins = [abs(chosen.reward - rejected.reward) for chosen, rejected in pairs]
    large = [pair for pair, margin in zip(pairs, margins, strict=True) if margin >= contrasts.MIN_MARGIN]
    assert 0 < len(large) < len(pairs)
    results = contrasts.evaluate_contrasts(model, pairs)
    assert results["n"] == len(large)
    assert results == contrasts.evaluate_contrasts(model, large)
    same = [(chosen, chosen) for chosen, _ in pairs]
    assert contrasts.evaluate_contrasts(model, same) == {"n": 0}


def test_effects_that_contradict_a_sign_are_counted(engine: Engine) -> None:
    model = make_models(engine)["linear"]
    pairs = score_pairs(engine, model)
    signs = [feature.sign for feature in model.features]
    reversed_model = with_signs(model, [-sign for sign in signs])
    assert contrasts.evaluate_contrasts(model, pairs)["contradictions"] == 0
    assert contrasts.evaluate_contrasts(reversed_model, pairs)["contradictions"] == 1


def test_features_without_a_sign_have_a_size_but_nothing_to_contradict(engine: Engine) -> None:
    model = make_models(engine)["linear"]
    pairs = score_pairs(engine, model)
    results = contrasts.evaluate_contrasts(model, pairs)
    first_unsigned = with_signs(model, [0, *(-feature.sign for feature in model.features[1:])])
    contributions, _ = contrasts.compute_margin_contributions(
        model, [pair for pair in pairs if abs(pair[0].reward - pair[1].reward) >= contrasts.MIN_MARGIN]
    )
    share = float(contributions[:, 0].abs().sum() / contributions.abs().sum())
    changed = contrasts.evaluate_contrasts(first_unsigned, pairs)
    assert changed["unsigned_share"] == pytest.approx(share)
    assert changed["contradictions"] == 1
    unsigned = contrasts.evaluate_contrasts(with_signs(model, [0] * tiny.K), pairs)
    assert unsigned["contradictions"] is None
    assert unsigned["unsigned_share"] == pytest.approx(1)
    assert unsigned["features_for_half"] == results["features_for_half"]


def test_sizes_are_measured_on_known_contributions(engine: Engine) -> None:
    model = make_models(engine)["linear with passages"]
    chosen, rejected = score_pairs(engine, model)[0]
    contributions = torch.zeros(2, tiny.K).double()
    contributions[0, :3] = torch.tensor([3.0, -1.0, 2.0])
    contributions[1, 1:4] = torch.tensor([1.0, 1.0, 2.0])
    pairs = [
        (
            replace(chosen, reward=float(row.sum()), contributions=row.numpy()),
            replace(rejected, reward=0.0, contributions=row.numpy() * 0),
        )
        for row in contributions
    ]
    results = contrasts.evaluate_contrasts(with_signs(model, [0, 1, *[-1] * (tiny.K - 2)]), pairs)
    assert results["n"] == 2
    assert results["features_for_half"] == 1
    assert results["cancellation"] == pytest.approx((6 / 4 + 1) / 2)
    assert results["unsigned_share"] == pytest.approx(0.3)
