"""A full disk: a clear error, no partial files, no lost data, and success once there is space."""

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

REPEATS = 50


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes inside the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_backbone_that_does_not_fit_leaves_no_files_and_is_saved_later(tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path / "whole")
    decoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    final = tmp_path / "cache" / "tiny-4"
    full_size = (folder / "model.safetensors").stat().st_size
    for n in range(REPEATS):
        with limit_file_size(full_size * n // REPEATS), pytest.raises(SourceError, match="free disk space"):
            model_sources.save_model_folder(decoder, tokenizer, {}, final)
        assert list(final.parent.iterdir()) == []
    model_sources.save_model_folder(decoder, tokenizer, {}, final)
    with limit_file_size(full_size // 2), pytest.raises(SourceError):
        model_sources.save_model_folder(decoder, tokenizer, {}, final)
    assert AutoModel.from_pretrained(final).state_dict().keys() == decoder.state_dict().keys()


def test_features_that_do_not_fit_do_not_lose_stored_ones(tmp_path: Path) -> None:
    cache, file = TensorCache(tmp_path / "features.sqlite"), tmp_path / "features.sqlite"
    wide = {"x": torch.arange(20_000.0)}
    cache.put([("kind", "first", wide)])
    for n in range(REPEATS):
        size = file.stat().st_size
        with limit_file_size(size + 100 * n), pytest.raises(sqlite3.OperationalError):
            cache.put([("kind", f"more {n}", wide)])
        assert set(cache.get("kind", ["first", f"more {n}"])) == {"first"}
    cache.put([("kind", "last", wide)])
    assert torch.equal(cache.get("kind", ["last"])["last"]["x"], wide["x"])
