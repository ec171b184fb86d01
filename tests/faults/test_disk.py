"""No room on the disk: one sentence, nothing half-written, nothing lost, and all well once there is room."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from app.backbone import model_sources
from app.errors import SourceError
from app.train.feature_cache import TensorCache
from tests.support import tiny

TIMES = 50


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_backbone_that_does_not_fit_leaves_nothing_and_fits_later(tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path / "whole")
    decoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    final = tmp_path / "cache" / "tiny-4"
    whole = (folder / "model.safetensors").stat().st_size
    for n in range(TIMES):
        with room_for(whole * n // TIMES), pytest.raises(SourceError, match="free disk space"):
            model_sources.save_model_folder(decoder, tokenizer, {}, final)
        assert list(final.parent.iterdir()) == []
    model_sources.save_model_folder(decoder, tokenizer, {}, final)
    with room_for(whole // 2), pytest.raises(SourceError):
        model_sources.save_model_folder(decoder, tokenizer, {}, final)
    assert AutoModel.from_pretrained(final).state_dict().keys() == decoder.state_dict().keys()


def test_features_that_do_not_fit_lose_none_that_did(tmp_path: Path) -> None:
    shelf, file = TensorCache(tmp_path / "features.sqlite"), tmp_path / "features.sqlite"
    wide = {"x": torch.arange(20_000.0)}
    shelf.put([("kind", "first", wide)])
    for n in range(TIMES):
        size = file.stat().st_size
        with room_for(size + 100 * n), pytest.raises(sqlite3.OperationalError):
            shelf.put([("kind", f"more {n}", wide)])
        assert set(shelf.get("kind", ["first", f"more {n}"])) == {"first"}
    shelf.put([("kind", "last", wide)])
    assert torch.equal(shelf.get("kind", ["last"])["last"]["x"], wide["x"])
