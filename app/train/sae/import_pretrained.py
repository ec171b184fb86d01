"""Imports a pretrained SAE of a recipe: downloads it, checks it, and stores it in SparseRM's format.

The latents of a TopK SAE compete at each token, so they cannot be computed one by one. They get one common
threshold, estimated on the training pairs so that as many fire as before. How well the two agree is measured
on other tokens.
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
from app.backbone.packing import pack, split_into_batches
from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from app.train.features import MAX_BATCH_TOKENS
from app.train.recipes import PretrainedSae, Recipe
from app.train.sae import training
from app.train.sae.training import LoadedSae
from app.types import Pair, Progress

MAX_THRESHOLD_PAIRS = 256
"""Training pairs on whose tokens a threshold is estimated."""
MAX_TOKENS_PER_RESPONSE = 16
CHUNK_ROWS = 256
"""Rows encoded at once; SAEs have up to 131,072 latents."""
MAX_CANDIDATE_FACTOR = 8
"""At each token, this many times `top_k` of the largest activations are considered for the threshold."""


@dataclass(frozen=True, slots=True)
class ThresholdFit:
    """A threshold that replaces a top-k rule, and how well the two agree.

    `precision` is the share of the latents above the threshold that fire in the SAE itself, `recall` the
    share of the latents that fire in the SAE that are above the threshold, `l0` the mean number above it.
    """

    top_k: int
    threshold: float
    l0: float
    precision: float
    recall: float
    tokens: int

    def to_provenance(self) -> dict[str, float]:
        """Return the values under their keys in provenance.json."""
        return {
            "most": self.top_k,
            "threshold": self.threshold,
            "l0": self.l0,
            "right": self.precision,
            "found": self.recall,
            "tokens": self.tokens,
        }


def import_pretrained_sae(
    recipe: Recipe, pairs: list[Pair], pairs_sha256: str, settings: Settings, progress: Progress
) -> Path:
    """Return the folder of a recipe's SAE, importing it if needed; `pairs` are used for TopK SAEs only."""
    folder = settings.cache / "saes" / _digest(recipe, pairs_sha256) / recipe.name
    if not folder.exists():
        backbone = model_sources.pin_revision(recipe.backbone, settings.models_dir)
        progress(f"fetching the SAE of {recipe.name}", 0.0)
        sae = _open_checked(recipe.sae)
        checkpoint = model_sources.fetch_checkpoint(
            model_sources.find_source(backbone, settings.models_dir),
            num_layers=recipe.sae.layer,
            cache=settings.cache,
            progress=progress,
        )
        provenance = {"backbone": backbone, "layer": recipe.sae.layer, "backbone_digest": checkpoint.digest}
        provenance |= asdict(recipe.sae) | {"sae_lens": version("sae-lens")}
        if sae.top_k is not None:
            rows = _compute_residuals(pairs, backbone, recipe.sae.layer, settings, progress)
            sae, fit = fit_threshold(sae, rows)
            provenance["firing"] = fit.to_provenance()
        _save(sae, {name: value for name, value in provenance.items() if value != ""}, folder)
    return folder


def fit_threshold(sae: LoadedSae, rows: Tensor) -> tuple[LoadedSae, ThresholdFit]:
    """Replace a top-k rule by one threshold, fitted on the first half of the rows, measured on the second."""
    if sae.top_k is None or len(rows) < 2:
        raise SourceError("a threshold is fitted only for a TopK SAE, on at least two tokens")
    dictionary = sae.dictionary.to(rows.device)
    fitting_rows, test_rows = rows.chunk(2)
    candidates = min(MAX_CANDIDATE_FACTOR * sae.top_k, len(dictionary.bias))
    largest = [
        dictionary.encode(chunk).topk(candidates, dim=1).values
        for chunk in torch.split(fitting_rows, CHUNK_ROWS)
    ]
    threshold = float(torch.cat(largest).flatten().topk(sae.top_k * len(fitting_rows)).values[-1])
    thresholds = torch.full_like(sae.dictionary.threshold, threshold)
    thresholded = sae._replace(dictionary=replace(sae.dictionary, threshold=thresholds), top_k=None)
    return thresholded, _measure_fit(sae, thresholded, test_rows, threshold)


def _measure_fit(sae: LoadedSae, thresholded: LoadedSae, rows: Tensor, threshold: float) -> ThresholdFit:
    original, with_threshold = (
        s._replace(dictionary=s.dictionary.to(rows.device)) for s in (sae, thresholded)
    )
    in_sae = above = both = 0
    for chunk in torch.split(rows, CHUNK_ROWS):
        fires_in_sae, is_above = original.activate(chunk) > 0, with_threshold.activate(chunk) > 0
        in_sae += int(fires_in_sae.sum())
        above += int(is_above.sum())
        both += int((fires_in_sae & is_above).sum())
    return ThresholdFit(
        top_k=sae.top_k or 0,
        threshold=threshold,
        l0=round(above / len(rows), 2),
        precision=round(both / max(above, 1), 4),
        recall=round(both / max(in_sae, 1), 4),
        tokens=len(rows),
    )


def _open_checked(source: PretrainedSae) -> LoadedSae:
    """Load the SAE of a recipe; raise SourceError if it differs from the recipe's description."""
    if source.folder:
        sae = training.load_sae(Path(source.folder))
    else:
        sae = training.fetch_sae(source.release, source.id)
    latents, inputs = sae.dictionary.encoder.shape
    actual = {"hook": sae.hook, "kind": sae.kind, "inputs": inputs, "latents": latents}
    for field, value in actual.items():
        if value != getattr(source, field):
            raise SourceError(f"the recipe says {field} {getattr(source, field)}, its SAE has {value}")
    return sae


def _compute_residuals(
    pairs: list[Pair], name: str, layer: int, settings: Settings, progress: Progress
) -> Tensor:
    """Return residuals of evenly spaced response tokens of the first pairs, on the backbone's device."""
    backbone, tokenizer = loading.load_backbone(name, layer, settings, progress)
    encoded = tokenizer.encode([item for pair in pairs[:MAX_THRESHOLD_PAIRS] for item in pair.items])
    residuals: list[Tensor] = []
    for batch in split_into_batches([item.ids for item in encoded], MAX_BATCH_TOKENS):
        packed = pack([encoded[i].ids for i in batch])
        responses = [
            packed.rows(k, encoded[i].response_start, encoded[i].response_end + 1)
            for k, i in enumerate(batch)
        ]
        rows = np.concatenate([r[:: -(-len(r) // MAX_TOKENS_PER_RESPONSE)] for r in responses])
        residuals.append(backbone.residuals(packed, {layer: rows})[layer].at(rows))
        share = sum(map(len, residuals)) / (len(encoded) * MAX_TOKENS_PER_RESPONSE)
        progress("tokens for a threshold", share)
    return torch.cat(residuals)


def _save(sae: LoadedSae, provenance: dict[str, object], folder: Path) -> None:
    """Save an SAE in a folder that appears only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        training.save_sae(sae, scratch)
        training.write_provenance(scratch, **provenance)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digest(recipe: Recipe, pairs_sha256: str) -> str:
    """Return a short digest of everything that determines an imported SAE."""
    parts = [asdict(recipe), pairs_sha256 if recipe.sae.kind == "topk" else ""]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
