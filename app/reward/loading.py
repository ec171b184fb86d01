"""From settings to a running engine: which bundles, which backbone, which device and precision."""

import logging
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as chatter

from app.backbone import model_sources
from app.backbone.backbone import Backbone
from app.backbone.model_sources import Progress
from app.backbone.prefix_cache import Recall
from app.backbone.runtime import precision
from app.backbone.tokenization import Text
from app.errors import BundleError, NotFound
from app.reward import bundle, composite
from app.reward.bundle import RewardModel
from app.reward.composite import Composite
from app.reward.engine import Engine
from app.settings import Settings

log = logging.getLogger("sparserm")


def engine(settings: Settings, progress: Progress) -> Engine:
    """Every reward model asked for, in the precision that answers soonest and moves no reward."""
    if precision.halves(settings, device(settings)):
        made = _engine(settings.model_copy(update={"dtype": "bfloat16"}), progress)
        moved = [off for name in made.models for off in made.probed(name)]
        if all(off <= precision.FAITHFUL for off in moved):
            return made
        log.warning("16 bits would be faster, but move a probe's reward by %.3f: using 32", max(moved))
    return _engine(settings, progress)


def _engine(settings: Settings, progress: Progress) -> Engine:
    """One backbone, cut after the deepest layer that any of its models reads."""
    models = _models(settings)
    backbones = sorted({model.card.backbone for model in models.values()})
    if len(backbones) > 1:
        raise BundleError(f"one server holds one backbone, but these were found: {', '.join(backbones)}")
    layers = max(model.card.layer for model in models.values())
    backbone, text = resident(backbones[0], layers, settings, progress)
    memory = Recall(settings.prefix_cache_mib * 2**20)
    made = Engine(backbone, text, models, _composites(settings, set(models)), memory)
    if settings.default_model and settings.default_model not in made.names:
        known = ", ".join(made.names)
        raise BundleError(f"no reward model {settings.default_model!r} to be the default; there are: {known}")
    return made


def portion(settings: Settings, index: int) -> Settings:
    """What one of several workers gets: a GPU of its own, or its share of the threads."""
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") else 0
    if gpus:
        return settings.model_copy(update={"device": f"cuda:{index % gpus}"})
    threads = settings.threads or len(os.sched_getaffinity(0))
    return settings.model_copy(update={"threads": max(1, threads // settings.workers)})


def with_model(engine: Engine, name: str, settings: Settings) -> Engine:
    """The same engine with a bundle as it lies on disk; only a name that is listed becomes a path."""
    if name not in bundle.names(settings.models_dir):
        raise NotFound(f"no bundle {name[:200]!r} in the models folder", "id", "unknown_model")
    models = {**engine.models, name: bundle.load(settings.models_dir / name)}
    found = _composites(settings, set(models))
    return Engine(engine.backbone, engine.text, models, found, engine.recall)


def without_model(engine: Engine, name: str) -> Engine:
    """The same engine without a model; refused where a composite needs it."""
    needing = [one for one in engine.composites if name in {h.partition("@")[0] for h in engine.heads(one)}]
    if needing:
        raise BundleError(f"{name} is a head of {', '.join(needing)}")
    models = {other: model for other, model in engine.models.items() if other != name}
    return Engine(engine.backbone, engine.text, models, engine.composites, engine.recall)


def bundles(name: str, settings: Settings) -> set[str]:
    """The bundles a name stands for: itself or a composite's heads, without their profiles."""
    known = composite.load(settings.models_dir / "composites.toml")
    heads = known[name].weights if name in known else (name,)
    return {head.partition("@")[0] for head in heads}


def resident(name: str, layers: int | None, settings: Settings, progress: Progress) -> tuple[Backbone, Text]:
    """A backbone on the chosen device, and its text room."""
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    chosen = device(settings)
    backbone, tokenizer = model_sources.open_backbone(
        model_sources.find(name, settings.models_dir),
        layers=layers,
        cache=settings.cache,
        device=chosen,
        dtype=precision.exact(settings, chosen),
        progress=progress,
    )
    text = Text(tokenizer, max_tokens=settings.max_tokens, max_text_chars=settings.max_text_chars)
    return backbone, text


def llm(name: str, settings: Settings, progress: Progress) -> PreTrainedModel:
    """A backbone's whole language model on the chosen device."""
    chosen = device(settings)
    return model_sources.open_llm(
        model_sources.find(name, settings.models_dir),
        cache=settings.cache,
        device=chosen,
        dtype=precision.exact(settings, chosen),
        progress=progress,
    )


def whole(name: str, settings: Settings, progress: Progress) -> Path:
    """The folder of a backbone with all of its layers."""
    source = model_sources.find(name, settings.models_dir)
    return Path(model_sources.pull(source, layers=None, cache=settings.cache, progress=progress).path)


def device(settings: Settings) -> torch.device:
    """Where a backbone is to lie."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def depth(backbone: str, settings: Settings) -> int | None:
    """The deepest layer any reward model here reads of a backbone; None if there is none."""
    cards = [bundle.load(settings.models_dir / name).card for name in bundle.names(settings.models_dir)]
    return max((card.layer for card in cards if card.backbone == backbone), default=None)


def _models(settings: Settings) -> dict[str, RewardModel]:
    found = bundle.names(settings.models_dir)
    wanted = settings.model_names or tuple(found)
    for name in wanted:
        if name not in found:
            raise BundleError(
                f"no reward model {name!r} in {settings.models_dir}; there are: {found or 'none'}"
            )
    if not wanted:
        raise BundleError(f"no reward models in {settings.models_dir}; make one with `sparserm train`")
    return {name: bundle.load(settings.models_dir / name) for name in wanted}


def _composites(settings: Settings, served: set[str]) -> dict[str, Composite]:
    """Those whose heads are all served; what is missing altogether is an error of the file."""
    found = composite.load(settings.models_dir / "composites.toml")
    known = set(bundle.names(settings.models_dir))
    heads = {name: {head.partition("@")[0] for head in one.weights} for name, one in found.items()}
    return {name: one for name, one in found.items() if heads[name] <= served or not heads[name] <= known}
