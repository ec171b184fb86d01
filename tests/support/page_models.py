"""Tiny models for tests of the web page: labels, a profile, a composite, a failing token, hostile names."""

from dataclasses import replace
from pathlib import Path

import torch

from app.reward import loading
from app.reward.bundle import load_bundle, save_bundle
from app.reward.engine import Engine
from app.settings import Settings
from app.train.assembly import REMAINDER_LABEL
from app.types import Feature, HeadKind, Pooling, SaeInput
from tests.support import tiny

OVERFLOW_WORD = "glass"
HOSTILE_NAME = "<img src=x onerror=alert(1)>"
LABELS = ("negation", "doubt", "doubt")
COMPOSITE = '["{}"]\nmode = "cautious"\npenalty = 0.5\nabout = "{}"\nweights = {{ alpha = 3, beta = 1 }}\n'


def build_models(folder: Path, **changes: object) -> tuple[Engine, Settings]:
    """Build the tiny models with labelled features, a profile of one model, and a composite of two."""
    settings = tiny.build_models(folder).model_copy(update=changes)
    for name in tiny.MODELS:
        _label_features(settings.models_dir / name, LABELS, "https://example.org/feature")
    (settings.models_dir / "composites.toml").write_text(COMPOSITE.format("both", "Alpha and beta."))
    profile = settings.models_dir / "alpha" / "profiles" / "strict.json"
    profile.parent.mkdir()
    profile.write_text('{"about": "Not in doubt.", "steer": {"doubt": 0}}')
    return loading.load_engine(settings, lambda *_: None), settings


def make_token_overflow(engine: Engine) -> None:
    """Make the embedding of one token NaN, so that every item with it fails."""
    encoded = engine.encode([tiny.make_item("amber", f"stone {OVERFLOW_WORD}")])[0]
    with torch.no_grad():
        engine.backbone.embedding.weight[encoded.ids[encoded.response_end - 1]] = float("nan")


def build_hostile_models(folder: Path) -> tuple[Engine, Settings]:
    """Build models whose names, labels, links and composite inject HTML and JavaScript."""
    settings = tiny.make_settings(folder)
    backbone_folder = tiny.save_backbone(folder / "backbone")
    backbone, text = loading.load_backbone(str(backbone_folder), None, settings, lambda *_: None)
    for seed, name in enumerate(("alpha", "beta", HOSTILE_NAME)):
        model = tiny.make_reward_model(name, backbone, text, layer=4, pooling=Pooling.MEAN, seed=seed)
        save_bundle(model, settings.models_dir / name)
        _label_features(
            settings.models_dir / name, (HOSTILE_NAME, f"</li>{HOSTILE_NAME}"), "javascript:alert(1)"
        )
    (settings.models_dir / "composites.toml").write_text(COMPOSITE.format(f"c{HOSTILE_NAME}", HOSTILE_NAME))
    return loading.load_engine(settings, lambda *_: None), settings


def build_response_model(folder: Path) -> tuple[Engine, Settings]:
    """Build a model of features of responses with a linear head that reads passages.

    Its last feature merges the directions that were not selected.
    """
    settings = tiny.make_settings(folder)
    backbone_folder = tiny.save_backbone(folder / "backbone")
    backbone, text = loading.load_backbone(str(backbone_folder), None, settings, lambda *_: None)
    model = tiny.make_reward_model("delta", backbone, text, layer=4, pooling=Pooling.MEAN, seed=3)
    card = replace(model.card, sae_input=SaeInput.RESPONSES, head_kind=HeadKind.LINEAR, hidden=1)
    dictionary, head = model.dictionary, model.head
    threshold = dictionary.threshold.clone()
    threshold[-1] = torch.finfo(threshold.dtype).max
    features = [
        replace(feature, difference=0.1, stability=1.0, agreement=0.9) for feature in model.features[:-1]
    ]
    model = replace(
        model, card=card, dictionary=replace(dictionary, threshold=threshold),
        head=replace(
            head, w1=head.w1[:, :1], b1=head.b1[:, :1], w2=head.w2[:, :1], kind=HeadKind.LINEAR
        ),
        features=(*features, Feature(tiny.LATENTS, 0, label=REMAINDER_LABEL)),
    )  # fmt: skip
    model = replace(model, probes=tiny.make_probes(model, backbone, text))
    return Engine(backbone, text, {"delta": model}), settings


def _label_features(folder: Path, labels: tuple[str, ...], url: str) -> None:
    """Give the first features of a bundle these labels."""
    model = load_bundle(folder)
    labelled = [
        replace(
            feature, label=label, label_score=0.8, url=url, keywords=(label, "word"), difference=0.1,
            stability=1.0, agreement=0.9,
        )
        for feature, label in zip(model.features, labels, strict=False)
    ]  # fmt: skip
    save_bundle(replace(model, features=(*labelled, *model.features[len(labelled) :])), folder)
