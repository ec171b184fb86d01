"""Loading of engines from settings: which bundles, which backbone, which device and precision."""

import logging
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from app.backbone import model_sources
from app.backbone.backbone import Backbone
from app.backbone.prefix_cache import PrefixCache
from app.backbone.runtime import autotune
from app.backbone.tokenization import ChatTokenizer
from app.errors import BundleError, NotFound
from app.reward import bundle
from app.reward.composite import Composite, load_composites
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.types import FORBID_EXTRA, Progress

log = logging.getLogger("sparserm")


def load_engine(settings: Settings, progress: Progress) -> Engine:
    """Load the reward models to serve, in the fastest precision that keeps the probes' rewards."""
    if autotune.is_bfloat16_faster(settings, resolve_device(settings)):
        engine = _load_engine(settings.model_copy(update={"dtype": "bfloat16"}), progress)
        errors = [error for name in engine.models for error in engine.measure_probe_errors(name)]
        if all(error <= autotune.MAX_PROBE_SHIFT for error in errors):
            return engine
        log.warning(
            "bfloat16 would be faster, but changes a probe's reward by %.3f: using float32", max(errors)
        )
    return _load_engine(settings, progress)


def _load_engine(settings: Settings, progress: Progress) -> Engine:
    """Load the models and their backbone, cut after the deepest layer that any model uses."""
    models = _load_models(settings)
    backbones = sorted({model.card.backbone for model in models.values()})
    if len(backbones) > 1:
        raise BundleError(f"one server serves one backbone, but the models use {', '.join(backbones)}")
    layers = max(model.card.layer for model in models.values())
    backbone, text = load_backbone(backbones[0], layers, settings, progress)
    prefix_cache = PrefixCache(settings.prefix_cache_mib * 2**20)
    engine = Engine(backbone, text, models, _load_composites(settings, set(models)), prefix_cache)
    if settings.default_model and settings.default_model not in engine.model_names:
        names = ", ".join(engine.model_names)
        raise BundleError(
            f"default_model {settings.default_model!r} is not a reward model; there are: {names}"
        )
    return engine


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """Content of serving.toml; the field names are its keys."""

    __pydantic_config__ = FORBID_EXTRA
    default_model: str = ""


def find_default_model(settings: Settings, names: Sequence[str]) -> str:
    """Return the model for requests that name none: of the settings, of serving.toml, or the first one.

    A model in serving.toml that is not served is ignored, because a server may serve only some models.
    """
    file = settings.models_dir / "serving.toml"
    configured = ""
    if file.exists():
        try:
            content = tomllib.loads(file.read_text())
            configured = TypeAdapter(ServingConfig).validate_python(content).default_model
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise BundleError(f"{file.name}: {error}") from error
    return settings.default_model or (configured if configured in names else names[0])


def select_worker_settings(settings: Settings, index: int) -> Settings:
    """Return the settings of worker `index`: its own GPU, or its share of the CPU threads."""
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") else 0
    if gpus:
        return settings.model_copy(update={"device": f"cuda:{index % gpus}"})
    threads = settings.threads or len(os.sched_getaffinity(0))
    return settings.model_copy(update={"threads": max(1, threads // settings.workers)})


def add_model(engine: Engine, name: str, settings: Settings) -> Engine:
    """Return the engine with a bundle (re)loaded from disk; only the names of listed bundles become paths."""
    if name not in bundle.list_bundles(settings.models_dir):
        raise NotFound(f"no bundle {name[:200]!r} in the models folder", "id", "unknown_model")
    models = {**engine.models, name: bundle.load_bundle(settings.models_dir / name)}
    composites = _load_composites(settings, set(models))
    return Engine(engine.backbone, engine.text, models, composites, engine.prefix_cache)


def remove_model(engine: Engine, name: str) -> Engine:
    """Return the engine without a model; raise BundleError if a composite needs it."""
    dependents = [
        composite
        for composite in engine.composites
        if name in {part.partition("@")[0] for part in engine.resolve_parts(composite)}
    ]
    if dependents:
        raise BundleError(f"{name} is part of the composite {', '.join(dependents)}")
    models = {other: model for other, model in engine.models.items() if other != name}
    return Engine(engine.backbone, engine.text, models, engine.composites, engine.prefix_cache)


def resolve_bundle_names(name: str, settings: Settings) -> set[str]:
    """Return the bundles that a model or composite needs, without profiles."""
    composites = load_composites(settings.models_dir / "composites.toml")
    parts = composites[name].weights if name in composites else (name,)
    return {part.partition("@")[0] for part in parts}


def load_backbone(
    name: str, layers: int | None, settings: Settings, progress: Progress
) -> tuple[Backbone, ChatTokenizer]:
    """Load a backbone on the configured device, with its tokenizer; `layers` None loads all layers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings)
    backbone, tokenizer = model_sources.load_backbone(
        model_sources.find_source(name, settings.models_dir),
        num_layers=layers,
        cache=settings.cache,
        device=device,
        dtype=autotune.resolve_dtype(settings, device),
        progress=progress,
    )
    text = ChatTokenizer(tokenizer, max_tokens=settings.max_tokens, max_text_chars=settings.max_text_chars)
    return backbone, text


def load_full_llm(name: str, settings: Settings, progress: Progress) -> PreTrainedModel:
    """Load the complete language model of a backbone on the configured device."""
    device = resolve_device(settings)
    return model_sources.load_llm(
        model_sources.find_source(name, settings.models_dir),
        cache=settings.cache,
        device=device,
        dtype=autotune.resolve_dtype(settings, device),
        progress=progress,
    )


def fetch_full_backbone(name: str, settings: Settings, progress: Progress) -> Path:
    """Fetch a backbone with all of its layers and return its folder."""
    source = model_sources.find_source(name, settings.models_dir)
    return Path(
        model_sources.fetch_checkpoint(source, num_layers=None, cache=settings.cache, progress=progress).path
    )


def resolve_device(settings: Settings) -> torch.device:
    """Return the device to compute on."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_deepest_layer(backbone: str, settings: Settings) -> int | None:
    """Return the deepest layer that a model in the folder uses of a backbone; None if no model uses it."""
    cards = [
        bundle.load_bundle(settings.models_dir / name).card
        for name in bundle.list_bundles(settings.models_dir)
    ]
    return max((card.layer for card in cards if card.backbone == backbone), default=None)


def _load_models(settings: Settings) -> dict[str, RewardModel]:
    available = bundle.list_bundles(settings.models_dir)
    names = settings.model_names or tuple(available)
    for name in names:
        if name not in available:
            raise BundleError(
                f"no reward model {name!r} in {settings.models_dir}; there are: {available or 'none'}"
            )
    if not names:
        raise BundleError(f"no reward models in {settings.models_dir}; make one with `sparserm train`")
    return {name: bundle.load_bundle(settings.models_dir / name) for name in names}


def _load_composites(settings: Settings, served: set[str]) -> dict[str, Composite]:
    """Read the composites whose models are all served.

    Also return those with a model that does not exist, so that the engine reports the error in the file.
    """
    composites = load_composites(settings.models_dir / "composites.toml")
    available = set(bundle.list_bundles(settings.models_dir))
    parts = {
        name: {part.partition("@")[0] for part in composite.weights} for name, composite in composites.items()
    }
    return {
        name: composite
        for name, composite in composites.items()
        if parts[name] <= served or not parts[name] <= available
    }
