"""A tiny world worth looking at: names on features, a composite, a token that fails; or names that bite."""

from dataclasses import replace
from pathlib import Path

import torch

from app.reward import loading
from app.reward.bundle import load_bundle, save_bundle
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Pooling
from tests.support import tiny

OVERFLOW_WORD = "glass"
HOSTILE_NAME = "<img src=x onerror=alert(1)>"
LABELS = ("negation", "doubt", "doubt")
COMPOSITE = '["{}"]\nmode = "cautious"\npenalty = 0.5\nabout = "{}"\nweights = {{ alpha = 3, beta = 1 }}\n'


def build_models(root: Path, **given: object) -> tuple[Engine, Settings]:
    """Three models whose first features bear names, a profile of one, and a composite of two."""
    settings = tiny.build_models(root).model_copy(update=given)
    for name in tiny.MODELS:
        _label(settings.models_dir / name, LABELS, "https://example.org/feature")
    (settings.models_dir / "composites.toml").write_text(COMPOSITE.format("both", "Alpha and beta."))
    strict = settings.models_dir / "alpha" / "profiles" / "strict.json"
    strict.parent.mkdir()
    strict.write_text('{"about": "Not in doubt.", "steer": {"doubt": 0}}')
    return loading.load_engine(settings, lambda *_: None), settings


def make_token_overflow(engine: Engine) -> None:
    """From now on one token overflows."""
    encoded = engine.encode([tiny.make_item("amber", f"stone {OVERFLOW_WORD}")])[0]
    with torch.no_grad():
        engine.backbone.embedding.weight[encoded.ids[encoded.response_end - 1]] = float("nan")


def build_hostile_models(root: Path) -> tuple[Engine, Settings]:
    """A model, its features, their links and a composite, all named by somebody who means harm."""
    settings = tiny.make_settings(root)
    folder = tiny.save_backbone(root / "backbone")
    backbone, text = loading.load_backbone(str(folder), None, settings, lambda *_: None)
    for seed, name in enumerate(("alpha", "beta", HOSTILE_NAME)):
        model = tiny.make_reward_model(name, backbone, text, layer=4, readout=Pooling.MEAN, seed=seed)
        save_bundle(model, settings.models_dir / name)
        _label(settings.models_dir / name, (HOSTILE_NAME, f"</li>{HOSTILE_NAME}"), "javascript:alert(1)")
    (settings.models_dir / "composites.toml").write_text(COMPOSITE.format(f"c{HOSTILE_NAME}", HOSTILE_NAME))
    return loading.load_engine(settings, lambda *_: None), settings


def _label(folder: Path, labels: tuple[str, ...], url: str) -> None:
    model = load_bundle(folder)
    named = [
        replace(
            feature, label=label, label_score=0.8, url=url, keywords=(label, "word"), difference=0.1,
            stability=1.0, agreement=0.9,
        )
        for feature, label in zip(model.features, labels, strict=False)
    ]  # fmt: skip
    save_bundle(replace(model, features=(*named, *model.features[len(named) :])), folder)
