"""Backbones whose architecture is not fully supported are refused before their weights are loaded."""

import json
import re
from pathlib import Path

import pytest

from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from tests.support import tiny
from tests.support.training_setup import ignore_progress


def test_unsupported_layer_types_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path)
    config = (folder / "config.json").read_text()
    entry = '{"layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"],'
    (folder / "config.json").write_text(config.replace("{", entry, 1))
    with pytest.raises(SourceError, match="layer 1 of this backbone uses chunked_attention"):
        loading.load_backbone(str(folder), None, settings, ignore_progress)


def test_unsupported_model_types_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.save_backbone(tmp_path, architecture="olmo")
    with pytest.raises(SourceError, match="'olmo' is not supported; there are: llama"):
        loading.load_backbone(str(folder), None, settings, ignore_progress)


@pytest.mark.parametrize(
    ("changes", "message"),
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
        ({"model_type": "unknown"}, "unknown"),
    ],
)
def test_unsupported_parts_are_refused_before_weights_are_loaded(
    changes: dict[str, object], message: str, settings: Settings, tmp_path: Path
) -> None:
    folder = tiny.save_backbone(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(SourceError, match=re.escape(message)):
        loading.load_backbone(str(folder), None, settings, ignore_progress)
