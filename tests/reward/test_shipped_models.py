"""The same laws on what is shipped: the real backbone and every bundle in models/."""

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
from app.types import Explain, Item, Message, ScoreOptions
from tests.support import tiny
from tests.support.paths import MODELS

pytestmark = pytest.mark.real
CLOSE = 1e-5
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
EXCHANGES = [Item((Message("user", q),), answer) for q, answers in QUESTIONS.items() for answer in answers]


@pytest.fixture(scope="module")
def shipped() -> Settings:
    return Settings(models_dir=MODELS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def real(shipped: Settings) -> Engine:
    return loading.load_engine(shipped, lambda *_: None)


@pytest.fixture(scope="module")
def everything(real: Engine) -> ScoreOptions:
    return ScoreOptions(tuple(real.models), Explain.TOKENS, top_k=1000)


def rewards(real: Engine, exchanges: list[Item], ask: ScoreOptions) -> np.ndarray:
    return np.array([[s.reward for s in scores] for scores in tiny.score_items(real, exchanges, ask)])


def test_the_probes_pass(real: Engine) -> None:
    real.verify()


def test_neighbours_order_and_sharing_change_nothing(real: Engine, everything: ScoreOptions) -> None:
    together = rewards(real, EXCHANGES, everything)
    alone = np.concatenate([rewards(real, [one], everything) for one in EXCHANGES])
    backwards = rewards(real, EXCHANGES[::-1], everything)[::-1]
    assert np.abs(together - alone).max() <= CLOSE
    assert np.abs(together - backwards).max() <= CLOSE


def test_contributions_and_credits_sum(real: Engine, everything: ScoreOptions) -> None:
    for scores in tiny.score_items(real, EXCHANGES, everything):
        for score in scores:
            assert abs(score.residual) <= CLOSE
            assert score.tokens
            assert abs(score.baseline + sum(f.contribution for f in score.features) - score.reward) <= CLOSE
            assert abs(score.baseline + sum(t.credit for t in score.tokens) - score.reward) <= CLOSE


def test_the_cut_equals_the_full_model(real: Engine, shipped: Settings) -> None:
    source = model_sources.find(real.backbone.name, shipped.models_dir)
    gguf = shipped.cache / "sources" / source.sha256[:12] / Path(source.files[0]).name
    full = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ids = real.encode(EXCHANGES[:1])[0].ids
    layer = real.backbone.num_layers
    with torch.inference_mode():
        hidden = full.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    found = tiny.compute_residuals(real.backbone, pack([ids]), layer)
    assert full.config.num_hidden_layers > layer
    assert torch.allclose(found, hidden, rtol=1e-5, atol=1e-3)


def test_the_slices_equal_the_full_sae(real: Engine, shipped: Settings) -> None:
    from sae_lens import SAE

    packed = pack([one.ids for one in real.encode(EXCHANGES)])
    for model in real.models.values():
        sae = SAE.load_from_disk(shipped.models_dir / "sae" / model.card.sae, device="cpu")
        residuals = tiny.compute_residuals(real.backbone, packed, model.card.layer)
        residuals = residuals[torch.from_numpy(packed.positions > 0)]
        latents = torch.tensor([feature.latent for feature in model.features])
        with torch.inference_mode():
            full = sae.encode(residuals)[:, latents]
        sliced = model.dictionary.encode(residuals)
        assert (sliced > 0).any()
        assert torch.allclose(sliced, full, rtol=1e-4, atol=1e-3)
        assert torch.allclose(
            model.dictionary.directions,
            Dictionary(*[sae.W_dec[latents]] * 4).orthogonalize().directions,
            atol=1e-4,
        )


def test_a_bundle_survives_saving(
    real: Engine, everything: ScoreOptions, shipped: Settings, tmp_path: Path
) -> None:
    for name in real.models:
        bundle.save_bundle(bundle.load_bundle(shipped.models_dir / name), tmp_path / name)
    again = Engine(
        real.backbone, real.text, {name: bundle.load_bundle(tmp_path / name) for name in real.models}
    )
    assert np.allclose(rewards(real, EXCHANGES, everything), rewards(again, EXCHANGES, everything), atol=1e-5)


def test_a_damaged_bundle_is_refused(real: Engine, shipped: Settings, tmp_path: Path) -> None:
    name = next(iter(real.models))
    bundle.save_bundle(bundle.load_bundle(shipped.models_dir / name), tmp_path)
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"weights\.safetensors has sha256"):
        bundle.load_bundle(tmp_path)


def test_another_home_is_refused(real: Engine) -> None:
    for model in real.models.values():
        with pytest.raises(BundleError, match="trained on backbone"):
            bundle.check_backbone_matches(
                model, backbone="sha256:0", template=real.text.digest, width=576, layers=18
            )
        with pytest.raises(BundleError, match="trained on chat template"):
            bundle.check_backbone_matches(
                model, backbone=real.backbone.digest, template="0", width=576, layers=18
            )


def test_the_truth_is_preferred_where_it_is_plain(real: Engine) -> None:
    found = rewards(real, EXCHANGES[3:5], ScoreOptions(("truthfulness",)))
    assert found[0, 0] > found[1, 0]


def test_trained_parameters_are_few(real: Engine) -> None:
    for model in real.models.values():
        assert model.card.trained_parameters < 0.01 * real.backbone.parameters
