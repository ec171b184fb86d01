"""From files and settings to finished artefacts: what `sparserm train` and `sparserm sae train` do."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.errors import SourceError
from app.model import home
from app.model.bundle import RewardModel, TrainingData
from app.model.sources import Progress, file_digest
from app.pairs import file_sha256, read_chats, read_pairs
from app.settings import Settings
from app.train import activations, fit, recipe, sae
from app.train.features import Reader
from app.types import ReadOut

CHAT_TOKENS = 512
HELD_OUT_ROWS = 8192


@dataclass(frozen=True, slots=True)
class SaeOrder:
    """Which SAE to make."""

    backbone: str
    layer: int
    width: int
    k: float
    tokens: int
    samples: int
    seed: int


def order(
    pairs: Path,
    test: Path | None,
    *,
    name: str,
    terms: str,
    sae: Path,
    k: int,
    limit: int,
    seed: int,
) -> recipe.Order:
    """Read the data and say what to make of it."""
    rows = read_pairs(pairs)
    data = TrainingData(pairs.name, file_sha256(pairs), min(limit, len(rows)), terms)
    tested = read_pairs(test) if test else []
    return recipe.Order(name, rows, data, tested, sae.name, k, limit, plan=fit.Plan(seed=seed))


def make(
    what: recipe.Order, sae_folder: Path, readout: str, settings: Settings, report: Progress
) -> RewardModel:
    """Train a reward model and write its bundle."""
    made_from = _provenance(sae_folder)
    backbone, text = home.resident(made_from["backbone"], made_from["layer"], settings, report)
    if backbone.digest != made_from["backbone_digest"]:
        raise SourceError(
            f"{sae_folder} was trained on {made_from['backbone_digest']}, not on {backbone.digest}"
        )
    dictionary = sae.load(sae_folder).to(backbone.device)
    digest = file_digest(sae_folder / "sae_weights.safetensors")
    reader = Reader(backbone, text, dictionary, made_from["layer"], ReadOut(readout), digest)
    model = recipe.train(what, reader, settings.cache, report)
    recipe.save(model, settings.models_dir / what.name)
    return model


def make_sae(what: SaeOrder, chats: Path, out: Path, settings: Settings, report: Progress) -> dict[str, Any]:
    """Harvest activations, train an SAE on them, and measure it on rows it has not seen."""
    short = settings.model_copy(update={"max_tokens": CHAT_TOKENS})
    backbone, text = home.resident(what.backbone, what.layer, short, report)
    store = activations.Store(
        settings.cache / "activations" / f"{what.backbone}-{what.layer}", backbone.width
    )
    activations.harvest(
        read_chats(chats),
        backbone=backbone,
        text=text,
        layer=what.layer,
        tokens=what.tokens,
        store=store,
        report=lambda rows: report("harvesting activations", rows / what.tokens),
    )
    rows = store.rows()
    train, held_out = rows[:-HELD_OUT_ROWS], rows[-HELD_OUT_ROWS:]
    sae.train(
        train,
        out,
        width=what.width,
        k=what.k,
        samples=what.samples,
        hook=f"model.layers.{what.layer - 1}",
        seed=what.seed,
        report=lambda done: report("training the SAE", done / what.samples),
    )
    facts = {
        **asdict(what),
        "backbone_digest": backbone.digest,
        "chats": chats.name,
        "chats_sha256": file_sha256(chats),
        "rows": len(train),
        "quality": sae.quality(held_out, out),
        "sae_lens": version("sae-lens"),
    }
    sae.note(out, **facts)
    return facts


def _provenance(folder: Path) -> dict[str, Any]:
    file = folder / "provenance.json"
    if not file.exists():
        raise SourceError(f"{folder} holds no SAE of ours: provenance.json is missing")
    found: dict[str, Any] = json.loads(file.read_text())
    return found
