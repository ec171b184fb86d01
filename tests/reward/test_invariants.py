"""Invariants of scoring on tiny models; test_shipped_models.py checks them on the shipped models."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoModel

from app.backbone.packing import pack, split_into_batches
from app.errors import BundleError, NonFiniteScore
from app.reward import bundle, loading
from app.reward.engine import Engine
from app.scores import Score, ScoredItem
from app.settings import Settings
from app.types import Explain, ScoreJob, ScoreOptions
from tests.support import tiny

ALL = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every invariant holds on every backbone architecture."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(architecture)


@pytest.fixture(scope="module")
def settings(root: Path, architecture: str) -> Settings:
    return tiny.build_models(root, architecture)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return loading.load_engine(settings, lambda *_: None)


def rewards(results: list[tuple[Score, ...]]) -> list[list[float]]:
    return [[score.reward for score in scores] for scores in results]


def test_a_score_does_not_depend_on_the_batch(engine: Engine) -> None:
    items = tiny.random_items(24)
    alone = [rewards(tiny.score_items(engine, [item], ALL))[0] for item in items]
    together = rewards(tiny.score_items(engine, items, ALL))
    assert np.abs(np.array(alone) - np.array(together)).max() <= TOLERANCE


def test_a_score_does_not_depend_on_the_order(engine: Engine) -> None:
    items = tiny.random_items(24)
    order = list(range(24))
    random.Random(1).shuffle(order)
    in_order = rewards(tiny.score_items(engine, items, ALL))
    shuffled = rewards(tiny.score_items(engine, [items[i] for i in order], ALL))
    assert np.abs(np.array([in_order[i] for i in order]) - np.array(shuffled)).max() <= TOLERANCE


@given(
    items=st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=9).map(tuple), max_size=30),
    budget=st.integers(1, 30),
)
def test_batches_hold_every_item_once_and_are_as_full_as_possible(
    items: list[tuple[int, ...]], budget: int
) -> None:
    batches = list(split_into_batches(items, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    assert all(len(batch) == 1 or len(pack([items[i] for i in batch]).ids) <= budget for batch in batches)
    for batch, following in pairwise(batches):
        assert len(pack([items[i] for i in [*batch, following[0]]]).ids) > budget


def test_shared_prefixes_are_computed_once_and_do_not_change_rewards(engine: Engine) -> None:
    items = [tiny.make_item("amber river stone " * 4, f"{word} glass") for word in tiny.WORDS]
    encoded = engine.encode(items)
    packed = pack([item.ids for item in encoded])
    assert len(packed.ids) < 0.5 * sum(len(item.ids) for item in encoded)
    alone = [rewards(tiny.score_items(engine, [item], ALL))[0] for item in items]
    together = rewards(tiny.score_items(engine, items, ALL))
    assert np.abs(np.array(alone) - np.array(together)).max() <= TOLERANCE


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)
)
def test_packed_items_have_the_residuals_of_items_alone(engine: Engine, items: list[tuple[int, ...]]) -> None:
    packed = pack(items)
    together = tiny.compute_residuals(engine.backbone, packed, tiny.LAYERS)
    for index, item in enumerate(items):
        rows = packed.rows(index, 0, len(item))
        assert packed.ids[rows].tolist() == list(item)
        alone = tiny.compute_residuals(engine.backbone, pack([item]), tiny.LAYERS)
        assert torch.allclose(together[rows], alone, atol=TOLERANCE)


def test_the_cut_backbone_equals_the_full_backbone(engine: Engine, root: Path) -> None:
    ids = engine.encode(tiny.random_items(1))[0].ids
    full = AutoModel.from_pretrained(root / "backbone", dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        hidden = full(torch.tensor([ids]), output_hidden_states=True).hidden_states
    rows = np.arange(len(ids))
    cut = engine.backbone.residuals(pack([ids]), {2: rows, 3: rows[-9:-5]})
    assert torch.allclose(cut[2].values, hidden[2][0], atol=TOLERANCE)
    assert torch.allclose(cut[3].values, hidden[3][0, -9:-5], atol=TOLERANCE)


def test_selected_latents_equal_those_of_the_full_dictionary() -> None:
    full = tiny.full_dictionary(0)
    latents = torch.tensor([5, 90, 17])
    residuals = torch.randn(50, tiny.WIDTH)
    assert torch.allclose(
        full.select(latents).encode(residuals), full.encode(residuals)[:, latents], atol=1e-6
    )
    assert torch.allclose(
        full.select(latents).project(residuals), full.project(residuals)[:, latents], atol=1e-6
    )


def test_contributions_sum_to_the_reward(engine: Engine) -> None:
    for scores in tiny.score_items(engine, tiny.random_items(16), ALL):
        for score in scores:
            total = score.baseline + sum(feature.contribution for feature in score.features)
            assert abs(score.residual) <= 1e-9
            assert abs(score.reward - total) <= 1e-9


def test_token_credits_sum_to_the_reward(engine: Engine) -> None:
    for scores in tiny.score_items(engine, tiny.random_items(16), ALL):
        for score in scores:
            assert score.tokens
            credits_sum = sum(token.credit for token in score.tokens)
            assert abs(score.baseline + credits_sum - score.reward) <= TOLERANCE


def test_margin_features_sum_to_the_margin(engine: Engine) -> None:
    chosen_scores, rejected_scores = tiny.score_items(engine, tiny.random_items(2), ALL)
    for chosen, rejected in zip(chosen_scores, rejected_scores, strict=True):
        features = engine.explain_margin(chosen, rejected, tiny.K)
        margin = chosen.reward - rejected.reward
        assert abs(sum(feature.contribution for feature in features) - margin) <= 1e-6


def test_contributions_equal_integrated_gradients(engine: Engine) -> None:
    head = engine.models["alpha"].head
    x, origin = torch.randn(2, 3, tiny.K, dtype=torch.float64).unbind()
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    path = (origin[:, None] + steps[None, :, None] * (x - origin)[:, None]).flatten(0, 1).requires_grad_()
    head.score_members(path).mean(1).sum().backward()  # type: ignore[no-untyped-call]
    assert path.grad is not None
    integrated = (x - origin) * path.grad.reshape(3, 4000, tiny.K).mean(1)
    assert torch.allclose(head.compute_contributions(x, origin), integrated, atol=2e-3)


def test_contributions_change_if_weights_are_shuffled(engine: Engine) -> None:
    head = engine.models["alpha"].head
    x = torch.randn(8, tiny.K, dtype=torch.float64)
    shuffled = replace(head, w1=head.w1[:, torch.randperm(tiny.HIDDEN)])
    before, after = (network.compute_contributions(x, torch.zeros_like(x)) for network in (head, shuffled))
    assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.9


def test_steering_a_feature_to_zero_removes_its_contribution(engine: Engine) -> None:
    items = tiny.random_items(1)
    score = tiny.score_items(engine, items, ScoreOptions(("alpha",), top_k=tiny.K))[0][0]
    latent = score.features[0].feature.latent
    options = ScoreOptions(("alpha",), top_k=tiny.K, steer={str(latent): 0.0})
    steered = tiny.score_items(engine, items, options)[0][0]
    assert {feature.feature.latent: feature.contribution for feature in steered.features}[latent] == 0
    assert steered.reward != score.reward


def test_a_saved_model_scores_the_same(engine: Engine, root: Path, tmp_path: Path) -> None:
    before = rewards(tiny.score_items(engine, tiny.random_items(6), ALL))
    reloaded = {}
    for name in tiny.MODELS:
        bundle.save_bundle(bundle.load_bundle(root / "models" / name), tmp_path / name)
        reloaded[name] = bundle.load_bundle(tmp_path / name)
    reloaded_engine = Engine(engine.backbone, engine.text, reloaded)
    after = rewards(tiny.score_items(reloaded_engine, tiny.random_items(6), ALL))
    assert before == after


@pytest.mark.parametrize("name", bundle.DIGESTED_FILES)
@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_rejects_a_flipped_bit(settings: Settings, tmp_path: Path, name: str, position: float) -> None:
    folder = tmp_path / "alpha"
    bundle.save_bundle(bundle.load_bundle(settings.models_dir / "alpha"), folder)
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * position)] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        bundle.load_bundle(folder)


def test_rejects_another_backbone(settings: Settings, tmp_path: Path) -> None:
    other, text = loading.load_backbone(
        str(tiny.save_backbone(tmp_path, seed=9)), None, settings, lambda *_: None
    )
    with pytest.raises(BundleError, match="alpha: trained on backbone sha256:"):
        Engine(other, text, {"alpha": bundle.load_bundle(settings.models_dir / "alpha")})


def test_rejects_another_template(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path, template=tiny.TEMPLATE.replace("\n", "\n\n"))
    _, text = loading.load_backbone(str(folder), None, settings, lambda *_: None)
    with pytest.raises(BundleError, match="alpha: trained on chat template sha256:"):
        Engine(engine.backbone, text, {"alpha": bundle.load_bundle(settings.models_dir / "alpha")})


def test_rejects_a_probe_with_another_reward(engine: Engine) -> None:
    model = engine.models["alpha"]
    changed = replace(model, head=replace(model.head, b2=model.head.b2 + 1))
    with pytest.raises(BundleError, match="probe 0 scores"):
        Engine(engine.backbone, engine.text, {"alpha": changed}).verify()


def test_only_the_item_that_overflows_fails(settings: Settings) -> None:
    engine = loading.load_engine(settings, lambda *_: None)
    items = [tiny.make_item("river", "stone glass"), tiny.make_item("river", "stone maple")]
    finite, overflowing = engine.encode(items)
    before = engine.score([ScoreJob(finite, ALL)])[0]
    engine.backbone.embedding.weight[overflowing.ids[overflowing.response_end - 1]] = float("nan")
    after, failed = engine.score([ScoreJob(finite, ALL), ScoreJob(overflowing, ALL)])
    assert isinstance(failed, NonFiniteScore)
    assert isinstance(before, ScoredItem)
    assert isinstance(after, ScoredItem)
    assert rewards([after.scores])[0] == pytest.approx(rewards([before.scores])[0], abs=TOLERANCE)


def test_scoring_changes_no_weight(engine: Engine) -> None:
    before = [weight.clone() for weight in engine.backbone.weights]
    tiny.score_items(engine, tiny.random_items(4), ALL)
    after = engine.backbone.weights
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in after)


def test_bfloat16_changes_rewards_little(settings: Settings, engine: Engine) -> None:
    bfloat16 = loading.load_engine(settings.model_copy(update={"dtype": "bfloat16"}), lambda *_: None)
    assert bfloat16.backbone.dtype == torch.bfloat16
    items = tiny.random_items(24)
    exact, rounded = (rewards(tiny.score_items(loaded, items, ALL)) for loaded in (engine, bfloat16))
    spread = np.array(exact).std()
    assert 0 < np.abs(np.array(exact) - np.array(rounded)).max() < 0.2 * spread
