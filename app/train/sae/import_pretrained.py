"""Somebody else's SAE as one of ours: fetched by a recipe, compared with it, kept in the form we train.

Latents that compete for places at a token (TopK) cannot be read one by one. They get one threshold, estimated
on the training pairs so that as many fire as before, and how well the two agree is measured on other tokens.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.backbone import model_sources
from app.backbone.model_sources import Progress
from app.backbone.packing import pack, split_into_batches
from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from app.train.features import MAX_BATCH_TOKENS
from app.train.presets import PretrainedSae, Recipe
from app.train.sae import training
from app.types import Pair

PAIRS, TOKENS_EACH, AT_ONCE, MOST_AHEAD = 256, 16, 256, 8


@dataclass(frozen=True, slots=True)
class ThresholdFit:
    """A threshold in place of a competition, and how well the two agree.

    `right` is the share of what fires here that fires in the SAE itself too, `found` the same the other way.
    """

    top_k: int
    threshold: float
    l0: float
    precision: float
    recall: float
    tokens: int


def import_pretrained_sae(
    recipe: Recipe, pairs: list[Pair], sha256: str, settings: Settings, progress: Progress
) -> Path:
    """The folder of a recipe's SAE, made if it is not there; the pairs are read where latents compete."""
    folder = settings.cache / "saes" / _key(recipe, sha256) / recipe.name
    if not folder.exists():
        backbone = model_sources.pinned(recipe.backbone, settings.models_dir)
        progress(f"fetching the SAE of {recipe.name}", 0.0)
        found = _checked(recipe.sae, _open(recipe.sae))
        place = model_sources.pull(
            model_sources.find(backbone, settings.models_dir),
            layers=recipe.sae.layer,
            cache=settings.cache,
            progress=progress,
        )
        facts = {"backbone": backbone, "layer": recipe.sae.layer, "backbone_digest": place.digest}
        facts |= asdict(recipe.sae) | {"sae_lens": version("sae-lens")}
        if found.top_k is not None:
            found, firing = fit_threshold(found, _rows(pairs, backbone, recipe.sae.layer, settings, progress))
            facts["firing"] = asdict(firing)
        _keep(found, {name: fact for name, fact in facts.items() if fact != ""}, folder)
    return folder


def fit_threshold(found: training.LoadedSae, rows: Tensor) -> tuple[training.LoadedSae, ThresholdFit]:
    """One threshold for latents that compete, from half of the rows; measured on the other half."""
    if found.top_k is None or len(rows) < 2:
        raise SourceError("a threshold needs latents that compete, and tokens to see them at")
    dictionary, most = found.dictionary.to(rows.device), found.top_k
    fitted, unseen = rows.chunk(2)
    ahead = min(MOST_AHEAD * most, len(dictionary.bias))
    strongest = [dictionary.encode(some).topk(ahead, dim=1).values for some in torch.split(fitted, AT_ONCE)]
    threshold = float(torch.cat(strongest).flatten().topk(most * len(fitted)).values[-1])
    everywhere = torch.full_like(found.dictionary.threshold, threshold)
    bounded = found._replace(dictionary=replace(found.dictionary, threshold=everywhere), most=None)
    return bounded, _compared(found, bounded, unseen, threshold)


def _compared(
    found: training.LoadedSae, bounded: training.LoadedSae, rows: Tensor, threshold: float
) -> ThresholdFit:
    theirs, ours = (one._replace(dictionary=one.dictionary.to(rows.device)) for one in (found, bounded))
    there = here = both = 0
    for some in torch.split(rows, AT_ONCE):
        fired, fires = theirs.activate(some) > 0, ours.activate(some) > 0
        there, here, both = (
            there + int(fired.sum()),
            here + int(fires.sum()),
            both + int((fired & fires).sum()),
        )
    return ThresholdFit(
        top_k=found.top_k or 0,
        threshold=threshold,
        l0=round(here / len(rows), 2),
        precision=round(both / max(here, 1), 4),
        recall=round(both / max(there, 1), 4),
        tokens=len(rows),
    )


def _open(said: PretrainedSae) -> training.LoadedSae:
    return training.load_sae(Path(said.folder)) if said.folder else training.fetch_sae(said.release, said.id)


def _checked(said: PretrainedSae, found: training.LoadedSae) -> training.LoadedSae:
    """The SAE, if it is what the recipe says it is."""
    latents, inputs = found.dictionary.encoder.shape
    real = {"hook": found.hook, "kind": found.kind, "inputs": inputs, "latents": latents}
    for what, value in real.items():
        if value != getattr(said, what):
            raise SourceError(f"the recipe says {what} {getattr(said, what)}, its SAE has {value}")
    return found


def _rows(pairs: list[Pair], name: str, layer: int, settings: Settings, progress: Progress) -> Tensor:
    """Residuals of some response tokens of some pairs, prompts side by side, on the backbone's device."""
    backbone, text = loading.load_backbone(name, layer, settings, progress)
    encoded = text.encode([one for pair in pairs[:PAIRS] for one in pair.items])
    found: list[Tensor] = []
    for some in split_into_batches([one.ids for one in encoded], MAX_BATCH_TOKENS):
        packed = pack([encoded[i].ids for i in some])
        read = [
            packed.rows(k, encoded[i].response_start, encoded[i].response_end + 1) for k, i in enumerate(some)
        ]
        at = np.concatenate([rows[:: -(-len(rows) // TOKENS_EACH)] for rows in read])
        found.append(backbone.residuals(packed, {layer: at})[layer].at(at))
        progress("tokens for a threshold", sum(map(len, found)) / (len(encoded) * TOKENS_EACH))
    return torch.cat(found)


def _keep(found: training.LoadedSae, facts: dict[str, object], folder: Path) -> None:
    """A folder that appears only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        training.save_sae(found, scratch)
        training.write_provenance(scratch, **facts)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _key(recipe: Recipe, sha256: str) -> str:
    """A short digest of all that decides an adopted SAE."""
    parts = [asdict(recipe), sha256 if recipe.sae.kind == "topk" else ""]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
