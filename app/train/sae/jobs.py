"""Trains and measures an SAE from chat files and settings: `sparserm sae train` and `sae measure`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from app.data.pairs import read_chats, source_sha256
from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from app.train.sae import activations, quality, training
from app.types import Item, Progress

MAX_CHAT_TOKENS = 512
HELD_OUT_CHATS = 160
"""First chats, which an SAE is measured on and never trained on."""
LOSS_CHATS = 40
"""Held-out chats on which the language model's loss is measured."""


@dataclass(frozen=True, slots=True)
class SaeTrainingConfig:
    """Which SAE is trained: `rows` activations are harvested, and it sees `samples` of them, with repetition.

    provenance.json has the fields as keys.
    """

    backbone: str
    layer: int
    width: int
    k: float
    rows: int
    samples: int
    seed: int


def train_and_measure(
    config: SaeTrainingConfig, chats: list[str], out: Path, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Harvest activations, train an SAE on them, measure it on held-out chats; return its provenance."""
    settings_for_chats = settings.model_copy(update={"max_tokens": MAX_CHAT_TOKENS})
    backbone, tokenizer = loading.load_backbone(config.backbone, config.layer, settings_for_chats, progress)
    sources = {Path(chat).name: source_sha256(chat) for chat in chats}
    key = _digest(backbone.digest, tokenizer.template_sha256, config.layer, sources)
    store = activations.ActivationStore(settings.cache / "activations" / key, backbone.hidden_size)
    activations.harvest_activations(
        islice(_iter_chats(chats), HELD_OUT_CHATS, None),
        backbone=backbone, tokenizer=tokenizer, layer=config.layer, rows=config.rows, store=store,
        progress=lambda rows: progress("harvesting activations", rows / config.rows),
    )  # fmt: skip
    rows = store.rows()[: config.rows]
    training.train_sae(
        rows,
        out,
        width=config.width,
        k=config.k,
        samples=config.samples,
        hook=f"model.layers.{config.layer - 1}",
        seed=config.seed,
        device=backbone.device,
        checkpoints=settings.cache / "checkpoints" / _digest(key, asdict(config), len(rows)),
        progress=lambda done: progress("training the SAE", done / config.samples),
    )
    provenance = {
        **asdict(config),
        "backbone_digest": backbone.digest,
        "template_sha256": tokenizer.template_sha256,
        "chats": sources,
        "harvested": len(rows),
        "sae_lens": version("sae-lens"),
    }
    training.write_provenance(out, **provenance)
    return measure_sae(out, chats, None, settings, progress)


def measure_sae(
    folder: Path, chats: list[str], other: Path | None, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Measure an SAE on the held-out chats and add the results to its provenance, which is returned.

    `other` is an SAE of another seed with which its directions are compared.
    """
    provenance = read_provenance(folder)
    layer = provenance["layer"]
    settings_for_chats = settings.model_copy(update={"max_tokens": MAX_CHAT_TOKENS})
    backbone, tokenizer = loading.load_backbone(provenance["backbone"], layer, settings_for_chats, progress)
    sae = training.load_sae(folder)
    dictionary, bias = sae.independent_latents().to(backbone.device), sae.bias.to(backbone.device)
    held_out = tokenizer.encode(list(islice(_iter_chats(chats), HELD_OUT_CHATS)))
    results = quality.measure_fidelity(
        held_out, backbone, layer, dictionary, bias,
        lambda done: progress("held-out conversations", done / len(held_out)),
    )  # fmt: skip
    progress("loss recovered", 0.0)
    llm = loading.load_full_llm(provenance["backbone"], settings, progress)
    reconstruct = quality.make_reconstruct(dictionary, bias)
    loss_chats = held_out[:LOSS_CHATS]
    results["loss_recovered"] = quality.measure_loss_recovered(loss_chats, llm, layer, reconstruct)
    if other:
        other_dictionary = training.load_sae(other).dictionary
        results["seed_agreement"] = quality.measure_agreement(dictionary, other_dictionary)
    provenance["quality"] = {name: round(value, 4) for name, value in results.items()}
    training.write_provenance(folder, **provenance)
    return provenance


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the facts about an SAE that this program trained or imported."""
    file = folder / training.PROVENANCE_FILE
    if not file.exists():
        raise SourceError(f"{folder} holds no SAE made by `sparserm sae train`: {file.name} is missing")
    provenance: dict[str, Any] = json.loads(file.read_text())
    return provenance


def _iter_chats(chats: list[str]) -> Iterator[Item]:
    return activations.interleave([read_chats(chat) for chat in chats])


def _digest(*parts: object) -> str:
    """Return a short digest of everything that determines an artefact."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
