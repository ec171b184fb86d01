"""Shares of tokens: an exact split of every contribution, for both kinds of heads and readings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.backbone.packing import pack
from app.reward.engine import Engine
from app.reward.explanation import contributions
from app.reward.explanation.tokens import compute_prefix_credits
from app.reward.passages import build_spans, compute_span_weights, find_passages
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.types import Explain, HeadKind, Item, ScoreOptions
from tests.support import tiny

ITEMS = [
    *tiny.random_items(6),
    tiny.make_item("a?", "violet glass. thunder paper! river, stone copper lamp. No. ash and a long text"),
    tiny.make_item("a?", "x"),
]
MEAN_MODELS = ("alpha", "delta")


@pytest.fixture(autouse=True)
def all_features_are_credited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credit as many features as the tiny models have."""
    monkeypatch.setattr(contributions, "MAX_CREDITED_FEATURES", tiny.K)


def make_linear(model: RewardModel) -> RewardModel:
    """Return the model with a linear head of one hidden unit."""
    head = model.head
    head = replace(head, w1=head.w1[:, :1], b1=head.b1[:, :1] * 0, w2=head.w2[:, :1], kind=HeadKind.LINEAR)
    return replace(model, head=head, card=replace(model.card, hidden=1, head_kind=HeadKind.LINEAR), probes=())


def score(engine: Engine, model: RewardModel, items: list[Item], **options: Any) -> list[Score]:
    name = model.card.name
    scorer = Engine(engine.backbone, engine.text, {name: model})
    request = replace(ScoreOptions((name,), Explain.TOKENS, top_k=tiny.K), **options)
    return [scored for (scored,) in tiny.score_items(scorer, items, request)]


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", MEAN_MODELS)
def test_tokens_sum_to_every_contribution_and_to_the_reward(
    engine: Engine, name: str, *, linear: bool
) -> None:
    model = make_linear(engine.models[name]) if linear else engine.models[name]
    latent = str(model.features[0].latent)
    for scored in score(engine, model, ITEMS, steer={latent: -2.5}):
        assert scored.tokens is not None
        credited = sum(token.credit for token in scored.tokens)
        assert scored.baseline + credited == pytest.approx(scored.reward, abs=1e-12)
        for feature in scored.features:
            assert sum(feature.credits) == pytest.approx(feature.contribution, abs=1e-12)
        by_feature = np.array([feature.credits for feature in scored.features]).sum(0)
        assert by_feature == pytest.approx([token.credit for token in scored.tokens], abs=1e-12)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", MEAN_MODELS)
def test_shares_follow_from_the_projections_of_single_tokens(
    engine: Engine, name: str, *, linear: bool
) -> None:
    """The shares of one response, computed from their definition, one token at a time."""
    model = make_linear(engine.models[name]) if linear else engine.models[name]
    item = ITEMS[6]
    (scored,) = score(engine, model, [item])
    (encoded,) = engine.encode([item])
    packed = pack([encoded.ids])
    rows = packed.rows(0, encoded.response_start, encoded.response_end)
    residuals = tiny.compute_residuals(engine.backbone, packed, model.card.layer)[torch.from_numpy(rows)]
    inputs = model.head.standardise(residuals @ model.dictionary.directions.T)
    passages = find_passages(encoded, encoded.response_turn, model.card.passages)
    spans = build_spans([len(inputs)], [passages], torch.device("cpu"))
    extents = list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True))
    pooled = torch.stack([inputs[start:end].mean(0) for start, end in extents])
    rewards = model.head.score_members(pooled).mean(1)
    weights = compute_span_weights(spans, rewards, model.card.passages).tolist()
    expected = torch.zeros_like(inputs)
    for (start, end), weight, x in zip(extents, weights, pooled, strict=True):
        parts = model.head.compute_contributions(x[None], torch.zeros_like(x[None]))[0]
        for t in range(start, end):
            expected[t] += weight * parts / x * inputs[t] / (end - start)
    shares = {feature.feature.latent: feature.credits for feature in scored.features}
    for k, feature in enumerate(model.features):
        assert shares[feature.latent] == pytest.approx(expected[:, k].tolist(), abs=1e-5)


def test_a_read_out_of_one_token_credits_changes_of_the_reward(engine: Engine) -> None:
    for name in ("beta", "gamma"):
        for scored in score(engine, engine.models[name], ITEMS):
            assert scored.tokens is not None
            credited = sum(token.credit for token in scored.tokens)
            assert scored.baseline + credited == pytest.approx(scored.reward, abs=1e-6)
            assert all(feature.credits == () for feature in scored.features)


def test_shares_do_not_depend_on_the_batch(engine: Engine) -> None:
    for name in MEAN_MODELS:
        model = engine.models[name]
        together = score(engine, model, ITEMS)
        for item, scored in zip(ITEMS, together, strict=True):
            (alone,) = score(engine, model, [item])
            assert [t.credit for t in alone.tokens or ()] == pytest.approx(
                [t.credit for t in scored.tokens or ()], abs=1e-4
            )


def test_the_number_of_credited_features_is_limited(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "MAX_CREDITED_FEATURES", 3)
    for scored in score(engine, engine.models["alpha"], ITEMS):
        assert [bool(feature.credits) for feature in scored.features] == [True] * 3 + [False] * (tiny.K - 3)


def test_prefix_credits_are_differences() -> None:
    assert compute_prefix_credits(1.0, [1.5, 0.5, 2.5]) == [0.5, -1.0, 2.0]
    assert compute_prefix_credits(1.0, []) == []
