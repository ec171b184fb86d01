"""The laws of the product, on tiny real models; test_real.py repeats them on the shipped ones."""

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
from app.settings import Settings
from app.types import Explain, Score, ScoredItem, ScoreJob, ScoreOptions
from tests.support import tiny

ALL = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
CLOSE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def kind(request: pytest.FixtureRequest) -> str:
    """Every law holds on every kind of backbone."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def settings(root: Path, kind: str) -> Settings:
    return tiny.build_models(root, kind)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return loading.load_engine(settings, lambda *_: None)


def rewards(found: list[tuple[Score, ...]]) -> list[list[float]]:
    return [[score.reward for score in scores] for scores in found]


def test_a_score_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    exchanges = tiny.random_items(24)
    alone = [rewards(tiny.score_items(engine, [one], ALL))[0] for one in exchanges]
    together = rewards(tiny.score_items(engine, exchanges, ALL))
    assert np.abs(np.array(alone) - np.array(together)).max() <= CLOSE


def test_nor_on_their_order(engine: Engine) -> None:
    exchanges = tiny.random_items(24)
    order = list(range(24))
    random.Random(1).shuffle(order)
    straight = rewards(tiny.score_items(engine, exchanges, ALL))
    shuffled = rewards(tiny.score_items(engine, [exchanges[i] for i in order], ALL))
    assert np.abs(np.array([straight[i] for i in order]) - np.array(shuffled)).max() <= CLOSE


@given(
    items=st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=9).map(tuple), max_size=30),
    budget=st.integers(1, 30),
)
def test_passes_hold_every_item_once_and_no_room_for_the_next(
    items: list[tuple[int, ...]], budget: int
) -> None:
    found = list(split_into_batches(items, budget))
    assert sorted(i for some in found for i in some) == list(range(len(items)))
    assert all(len(some) == 1 or len(pack([items[i] for i in some]).ids) <= budget for some in found)
    for some, after in pairwise(found):
        assert len(pack([items[i] for i in [*some, after[0]]]).ids) > budget


def test_shared_prefixes_are_computed_once_and_change_nothing(engine: Engine) -> None:
    exchanges = [tiny.make_item("amber river stone " * 4, f"{word} glass") for word in tiny.WORDS]
    packed = pack([one.ids for one in engine.encode(exchanges)])
    assert len(packed.ids) < 0.5 * sum(len(one.ids) for one in engine.encode(exchanges))
    apart = [rewards(tiny.score_items(engine, [one], ALL))[0] for one in exchanges]
    assert (
        np.abs(np.array(apart) - np.array(rewards(tiny.score_items(engine, exchanges, ALL)))).max() <= CLOSE
    )


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)
)
def test_packing_any_token_trie_equals_running_each_item_alone(
    engine: Engine, items: list[tuple[int, ...]]
) -> None:
    packed = pack(items)
    together = tiny.compute_residuals(engine.backbone, packed, tiny.LAYERS)
    for index, item in enumerate(items):
        rows = packed.rows(index, 0, len(item))
        assert packed.ids[rows].tolist() == list(item)
        alone = tiny.compute_residuals(engine.backbone, pack([item]), tiny.LAYERS)
        assert torch.allclose(together[rows], alone, atol=CLOSE)


def test_the_cut_backbone_equals_the_full_one(engine: Engine, root: Path) -> None:
    ids = engine.encode(tiny.random_items(1))[0].ids
    full = AutoModel.from_pretrained(root / "backbone", dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        hidden = full(torch.tensor([ids]), output_hidden_states=True).hidden_states
    every = np.arange(len(ids))
    cut = engine.backbone.residuals(pack([ids]), {2: every, 3: every[-9:-5]})
    assert torch.allclose(cut[2].values, hidden[2][0], atol=CLOSE)
    assert torch.allclose(cut[3].values, hidden[3][0, -9:-5], atol=CLOSE)


def test_a_sliced_dictionary_equals_the_full_one() -> None:
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
            total = score.baseline + sum(one.contribution for one in score.features)
            assert abs(score.residual) <= 1e-9
            assert abs(score.reward - total) <= 1e-9


def test_token_credits_sum_to_the_reward(engine: Engine) -> None:
    for scores in tiny.score_items(engine, tiny.random_items(16), ALL):
        for score in scores:
            assert score.tokens
            assert abs(score.baseline + sum(t.credit for t in score.tokens) - score.reward) <= CLOSE


def test_contrast_features_sum_to_the_margin(engine: Engine) -> None:
    better, worse = tiny.score_items(engine, tiny.random_items(2), ALL)
    for chosen, rejected in zip(better, worse, strict=True):
        shares = engine.explain_margin(chosen, rejected, tiny.K)
        assert abs(sum(s.contribution for s in shares) - (chosen.reward - rejected.reward)) <= 1e-6


def test_attribution_is_the_integral_of_the_gradient(engine: Engine) -> None:
    head = engine.models["alpha"].head
    x, origin = torch.randn(2, 3, tiny.K, dtype=torch.float64).unbind()
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    path = (origin[:, None] + steps[None, :, None] * (x - origin)[:, None]).flatten(0, 1).requires_grad_()
    head.score_members(path).mean(1).sum().backward()  # type: ignore[no-untyped-call]
    assert path.grad is not None
    integrated = (x - origin) * path.grad.reshape(3, 4000, tiny.K).mean(1)
    assert torch.allclose(head.compute_contributions(x, origin), integrated, atol=2e-3)


def test_attribution_changes_when_the_heads_are_shuffled(engine: Engine) -> None:
    head = engine.models["alpha"].head
    x = torch.randn(8, tiny.K, dtype=torch.float64)
    shuffled = replace(head, w1=head.w1[:, torch.randperm(tiny.HIDDEN)])
    before, after = (h.compute_contributions(x, torch.zeros_like(x)) for h in (head, shuffled))
    assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.9


def test_silencing_a_feature_removes_its_contribution(engine: Engine) -> None:
    one = tiny.random_items(1)
    score = tiny.score_items(engine, one, ScoreOptions(("alpha",), top_k=tiny.K))[0][0]
    latent = score.features[0].feature.latent
    steered = tiny.score_items(engine, one, ScoreOptions(("alpha",), top_k=tiny.K, steer={str(latent): 0.0}))[
        0
    ][0]
    assert {f.feature.latent: f.contribution for f in steered.features}[latent] == 0
    assert steered.reward != score.reward


def test_a_saved_model_scores_the_same(engine: Engine, root: Path, tmp_path: Path) -> None:
    before = rewards(tiny.score_items(engine, tiny.random_items(6), ALL))
    again = {}
    for name in tiny.MODELS:
        bundle.save_bundle(bundle.load_bundle(root / "models" / name), tmp_path / name)
        again[name] = bundle.load_bundle(tmp_path / name)
    after = rewards(tiny.score_items(Engine(engine.backbone, engine.text, again), tiny.random_items(6), ALL))
    assert before == after


@pytest.mark.parametrize("name", bundle.DIGESTED_FILES)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_refused(settings: Settings, tmp_path: Path, name: str, where: float) -> None:
    folder = tmp_path / "alpha"
    bundle.save_bundle(bundle.load_bundle(settings.models_dir / "alpha"), folder)
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * where)] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        bundle.load_bundle(folder)


def test_another_backbone_is_refused(settings: Settings, tmp_path: Path) -> None:
    other, text = loading.load_backbone(
        str(tiny.save_backbone(tmp_path, seed=9)), None, settings, lambda *_: None
    )
    with pytest.raises(BundleError, match="alpha: trained on backbone sha256:"):
        Engine(other, text, {"alpha": bundle.load_bundle(settings.models_dir / "alpha")})


def test_another_template_is_refused(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path, template=tiny.TEMPLATE.replace("\n", "\n\n"))
    _, text = loading.load_backbone(str(folder), None, settings, lambda *_: None)
    with pytest.raises(BundleError, match="alpha: trained on chat template sha256:"):
        Engine(engine.backbone, text, {"alpha": bundle.load_bundle(settings.models_dir / "alpha")})


def test_a_probe_that_is_off_is_refused(engine: Engine) -> None:
    model = engine.models["alpha"]
    wrong = replace(model, head=replace(model.head, b2=model.head.b2 + 1))
    with pytest.raises(BundleError, match="probe 0 scores"):
        Engine(engine.backbone, engine.text, {"alpha": wrong}).verify()


def test_an_item_that_overflows_fails_alone(settings: Settings) -> None:
    engine = loading.load_engine(settings, lambda *_: None)
    exchanges = [tiny.make_item("river", "stone glass"), tiny.make_item("river", "stone maple")]
    fine, poisoned = engine.encode(exchanges)
    before = engine.score([ScoreJob(fine, ALL)])[0]
    engine.backbone.embedding.weight[poisoned.ids[poisoned.response_end - 1]] = float("nan")
    after, failed = engine.score([ScoreJob(fine, ALL), ScoreJob(poisoned, ALL)])
    assert isinstance(failed, NonFiniteScore)
    assert isinstance(before, ScoredItem)
    assert isinstance(after, ScoredItem)
    assert [s.reward for s in after.scores] == pytest.approx([s.reward for s in before.scores], abs=CLOSE)


def test_serving_changes_no_weight(engine: Engine) -> None:
    before = [weight.clone() for weight in engine.backbone.weights]
    tiny.score_items(engine, tiny.random_items(4), ALL)
    after = engine.backbone.weights
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in after)


def test_half_the_bits_move_rewards_little(settings: Settings, engine: Engine) -> None:
    half = loading.load_engine(settings.model_copy(update={"dtype": "bfloat16"}), lambda *_: None)
    assert half.backbone.dtype == torch.bfloat16
    exact, rounded = (rewards(tiny.score_items(one, tiny.random_items(24), ALL)) for one in (engine, half))
    spread = np.array(exact).std()
    assert 0 < np.abs(np.array(exact) - np.array(rounded)).max() < 0.2 * spread
