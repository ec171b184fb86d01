"""A second real backbone: Gemma-3 270M, from its parts on PyPI, 238 MB (`make test-all`)."""

import pytest
import torch

from app.backbone import model_sources
from app.backbone.backbone import Backbone
from app.backbone.packing import pack
from app.backbone.tokenization import Text
from app.reward import loading
from app.settings import Settings
from tests.reward.test_shipped_models import EXCHANGES
from tests.support import tiny
from tests.support.paths import MODELS
from tests.support.training_setup import quiet

pytestmark = [pytest.mark.real, pytest.mark.heavy, pytest.mark.timeout(1200)]
NAME, LAYER = "gemma-3-270m", 13
CLOSE = 1e-5


@pytest.fixture(scope="module")
def shipped() -> Settings:
    return Settings(models_dir=MODELS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def resident(shipped: Settings) -> tuple[Backbone, Text]:
    return loading.load_backbone(NAME, None, shipped, quiet)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far rows are from what they should be, relative to their own length."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def test_its_layers_equal_transformers_own(resident: tuple[Backbone, Text], shipped: Settings) -> None:
    backbone, text = resident
    llm = loading.load_full_llm(NAME, shipped, quiet)
    llm.set_attn_implementation("eager")
    for exchange in EXCHANGES[:2]:
        (encoded,) = text.encode([exchange])
        with torch.inference_mode():
            states = llm.model(torch.tensor([encoded.ids]), output_hidden_states=True).hidden_states
        for layer in (1, 6, LAYER):
            found = tiny.compute_residuals(backbone, pack([encoded.ids]), layer)
            assert apart(found, states[layer][0]) <= CLOSE


def test_packing_and_windows_change_nothing(resident: tuple[Backbone, Text]) -> None:
    backbone, text = resident
    long = [tiny.make_item("amber river stone " * 180, f"{word} glass") for word in tiny.WORDS[:3]]
    encoded = text.encode([*EXCHANGES, *long])
    assert max(len(one.ids) for one in encoded) > backbone.config.sliding_window
    packed = pack([one.ids for one in encoded])
    together = tiny.compute_residuals(backbone, packed, LAYER)
    for item, one in enumerate(encoded):
        alone = tiny.compute_residuals(backbone, pack([one.ids]), LAYER)
        assert apart(together[packed.rows(item, 0, len(one.ids))], alone) <= CLOSE


def test_the_catalogue_s_template_is_made_of_its_control_tokens(resident: tuple[Backbone, Text]) -> None:
    _, text = resident
    (encoded,) = text.encode([tiny.make_item("amber?", "<end_of_turn>")])
    shown = text.decode(encoded.ids)
    assert shown[:3] == ["<bos>", "<start_of_turn>", "user"]
    assert shown[encoded.response_end] == "<end_of_turn>"
    assert "<end_of_turn>" not in shown[encoded.response_start : encoded.response_end]


def test_it_is_the_model_it_says(resident: tuple[Backbone, Text], shipped: Settings) -> None:
    """Sense is likelier than the same words in another order."""
    _, text = resident
    llm = loading.load_full_llm(NAME, shipped, quiet)
    losses = []
    for words in (
        "The capital of France is the city of Paris.",
        "France is city the Paris capital of The of.",
    ):
        ids = torch.tensor([text.tokenizer(words).input_ids])
        with torch.inference_mode():
            losses.append(float(llm(ids, labels=ids).loss))
    assert losses[0] + 1 < losses[1]
    assert model_sources.find(NAME, shipped.models_dir).license == "Gemma Terms of Use"
