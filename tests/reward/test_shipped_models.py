"""The invariants of scoring on the shipped backbone and all bundles in models/."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from app.backbone import model_sources
from app.backbone.packing import pack
from app.errors import BundleError
from app.reward import bundle, loading
from app.reward.directions import Dictionary
from app.reward.engine import Engine
from app.settings import Settings
from app.train.sae.training import load_sae
from app.types import Explain, Item, Message, ScoreOptions
from tests.support import tiny
from tests.support.paths import MODELS

pytestmark = pytest.mark.real
TOLERANCE = 1e-5
SHIPPED_SAE = "smollm2-135m-instruct-l18"
QUESTIONS = {
    "What is the tallest mountain on Earth above sea level?": [
        "Mount Everest is the tallest mountain above sea level.",
        "Mount Everest, although measured from its base Mauna Kea is taller.",
        "It is the Zugspitze.",
    ],
    "Do goldfish have a memory of three seconds?": [
        "No, goldfish can remember things for months.",
        "Yes, a goldfish forgets everything after three seconds.",
    ],
    "Explain rain to a child.": ["Water rises, gathers in clouds, gets heavy and falls.", "No."],
}
ITEMS = [
    Item((Message("user", question),), response)
    for question, responses in QUESTIONS.items()
    for response in responses
]


CHAT = (
    Message("user", "How long does it take to boil an egg?"),
    Message("assistant", "Six minutes for a soft yolk, ten for a hard one."),
    Message("user", "And at high altitude?"),
    Message("assistant", "Longer, because water boils at a lower temperature there: add a minute or two."),
    Message("user", "Thanks. Can I do it in the microwave?"),
    Message("assistant", "No idea."),
    Message("user", "Please think about it."),
)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(models_dir=MODELS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return loading.load_engine(settings, lambda *_: None)


@pytest.fixture(scope="module")
def options(engine: Engine) -> ScoreOptions:
    return ScoreOptions(tuple(engine.models), Explain.TOKENS, top_k=1000)


def rewards(engine: Engine, items: list[Item], options: ScoreOptions) -> np.ndarray:
    results = tiny.score_items(engine, items, options)
    return np.array([[score.reward for score in scores] for scores in results])


def test_probes_have_the_rewards_of_the_bundles(engine: Engine) -> None:
    engine.verify()


def test_rewards_do_not_depend_on_batch_or_order(engine: Engine, options: ScoreOptions) -> None:
    together = rewards(engine, ITEMS, options)
    alone = np.concatenate([rewards(engine, [item], options) for item in ITEMS])
    reversed_order = rewards(engine, ITEMS[::-1], options)[::-1]
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together - reversed_order).max() <= TOLERANCE


def test_contributions_and_credits_sum_to_the_reward(engine: Engine, options: ScoreOptions) -> None:
    for scores in tiny.score_items(engine, ITEMS, options):
        for score in scores:
            assert abs(score.residual) <= TOLERANCE
            assert score.tokens
            contributions = sum(feature.contribution for feature in score.features)
            credits_sum = sum(token.credit for token in score.tokens)
            assert abs(score.baseline + contributions - score.reward) <= TOLERANCE
            assert abs(score.baseline + credits_sum - score.reward) <= TOLERANCE


def test_turns_have_the_rewards_of_the_conversation_cut_after_them(
    engine: Engine, options: ScoreOptions
) -> None:
    item = Item(CHAT, "Do not boil a whole egg in the microwave: it can burst.")
    cuts = [Item(CHAT[:index], CHAT[index].content) for index in (1, 3, 5)]
    (scores,) = tiny.score_items(engine, [item], replace(options, explain=Explain.TURNS))
    expected = rewards(engine, [*cuts, item], options)
    for scored, column in zip(scores, expected.T, strict=True):
        assert np.abs(np.array([turn.reward for turn in scored.turns]) - column).max() <= TOLERANCE
        assert abs(scored.baseline + sum(turn.change for turn in scored.turns) - scored.reward) <= 1e-9


def test_the_cut_backbone_equals_the_full_model(engine: Engine, settings: Settings) -> None:
    source = model_sources.find_source(engine.backbone.name, settings.models_dir)
    gguf = settings.cache / "sources" / source.sha256[:12] / Path(source.files[0]).name
    full = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ids = engine.encode(ITEMS[:1])[0].ids
    layer = engine.backbone.num_layers
    with torch.inference_mode():
        hidden = full.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    residuals = tiny.compute_residuals(engine.backbone, pack([ids]), layer)
    assert full.config.num_hidden_layers > layer
    assert torch.allclose(residuals, hidden, rtol=1e-5, atol=1e-3)


def test_selected_latents_of_the_shipped_sae_equal_those_of_the_full_sae(
    engine: Engine, settings: Settings
) -> None:
    from sae_lens import SAE

    folder = settings.models_dir / "sae" / SHIPPED_SAE
    layer = next(iter(engine.models.values())).card.layer
    packed = pack([item.ids for item in engine.encode(ITEMS)])
    residuals = tiny.compute_residuals(engine.backbone, packed, layer)
    residuals = residuals[torch.from_numpy(packed.positions > 0)]
    sae = SAE.load_from_disk(folder, device="cpu")
    with torch.inference_mode():
        full = sae.encode(residuals)
    latents = full.sum(0).topk(64).indices
    selected = load_sae(folder).independent_latents().select(latents)
    sliced = selected.encode(residuals)
    assert (sliced > 0).any()
    assert torch.allclose(sliced, full[:, latents], rtol=1e-4, atol=1e-3)
    assert torch.allclose(
        selected.orthogonalize().directions,
        Dictionary(*[sae.W_dec[latents]] * 4).orthogonalize().directions,
        atol=1e-4,
    )


def test_a_saved_bundle_scores_the_same(
    engine: Engine, options: ScoreOptions, settings: Settings, tmp_path: Path
) -> None:
    for name in engine.models:
        bundle.save_bundle(bundle.load_bundle(settings.models_dir / name), tmp_path / name)
    reloaded = Engine(
        engine.backbone, engine.text, {name: bundle.load_bundle(tmp_path / name) for name in engine.models}
    )
    assert np.allclose(rewards(engine, ITEMS, options), rewards(reloaded, ITEMS, options), atol=1e-5)


def test_rejects_a_damaged_bundle(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    name = next(iter(engine.models))
    bundle.save_bundle(bundle.load_bundle(settings.models_dir / name), tmp_path)
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"weights\.safetensors has sha256"):
        bundle.load_bundle(tmp_path)


def test_rejects_another_backbone_or_template(engine: Engine) -> None:
    for model in engine.models.values():
        with pytest.raises(BundleError, match="trained on backbone"):
            bundle.check_backbone_matches(
                model, backbone="sha256:0", template=engine.text.template_sha256, width=576, layers=18
            )
        with pytest.raises(BundleError, match="trained on chat template"):
            bundle.check_backbone_matches(
                model, backbone=engine.backbone.digest, template="0", width=576, layers=18
            )


def test_prefers_a_plainly_true_response(engine: Engine) -> None:
    true, false = rewards(engine, ITEMS[3:5], ScoreOptions(("truthfulness",)))[:, 0]
    assert true > false


def test_trained_parameters_are_few(engine: Engine) -> None:
    for model in engine.models.values():
        assert model.card.trained_parameters < 0.01 * engine.backbone.num_parameters
