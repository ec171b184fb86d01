"""From chats and settings to an SAE on disk, measured: what `sparserm sae train` and `sae measure` do."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from app.backbone.model_sources import Progress
from app.data.pairs import read_chats, source_sha256
from app.errors import SourceError
from app.reward import loading
from app.settings import Settings
from app.train.sae import activations, training
from app.train.sae import quality as gauge
from app.types import Item

CHAT_TOKENS = 512
HELD_OUT = 160
LOSS_CHATS = 40


@dataclass(frozen=True, slots=True)
class SaeTrainingConfig:
    """Which SAE to make."""

    backbone: str
    layer: int
    width: int
    k: float
    rows: int
    samples: int
    seed: int


def train_and_measure(
    what: SaeTrainingConfig, chats: list[str], out: Path, settings: Settings, report: Progress
) -> dict[str, Any]:
    """Harvest activations, train an SAE on them, and measure it on conversations it has not seen."""
    short = settings.model_copy(update={"max_tokens": CHAT_TOKENS})
    backbone, text = loading.load_backbone(what.backbone, what.layer, short, report)
    sources = {Path(chat).name: source_sha256(chat) for chat in chats}
    key = _key(backbone.digest, text.digest, what.layer, sources)
    store = activations.ActivationStore(settings.cache / "activations" / key, backbone.hidden_size)
    activations.harvest_activations(
        islice(_conversations(chats), HELD_OUT, None),
        backbone=backbone,
        text=text,
        layer=what.layer,
        rows=what.rows,
        store=store,
        report=lambda rows: report("harvesting activations", rows / what.rows),
    )
    rows = store.rows()[: what.rows]
    training.train_sae(
        rows,
        out,
        width=what.width,
        k=what.k,
        samples=what.samples,
        hook=f"model.layers.{what.layer - 1}",
        seed=what.seed,
        device=backbone.device,
        checkpoints=settings.cache / "checkpoints" / _key(key, asdict(what), len(rows)),
        report=lambda done: report("training the SAE", done / what.samples),
    )
    facts = {
        **asdict(what),
        "backbone_digest": backbone.digest,
        "template_sha256": text.digest,
        "chats": sources,
        "harvested": len(rows),
        "sae_lens": version("sae-lens"),
    }
    training.write_provenance(out, **facts)
    return measure_sae(out, chats, None, settings, report)


def measure_sae(
    folder: Path, chats: list[str], beside: Path | None, settings: Settings, report: Progress
) -> dict[str, Any]:
    """Measure an SAE on the first conversations of its chats, which training leaves out, and note it down."""
    facts = read_provenance(folder)
    short = settings.model_copy(update={"max_tokens": CHAT_TOKENS})
    backbone, text = loading.load_backbone(facts["backbone"], facts["layer"], short, report)
    found = training.load_sae(folder)
    dictionary, bias = found.independent_latents().to(backbone.device), found.bias.to(backbone.device)
    held_out = text.encode(list(islice(_conversations(chats), HELD_OUT)))
    heard = lambda done: report("held-out conversations", done / len(held_out))  # noqa: E731 # read once, below
    quality = gauge.measure_fidelity(held_out, backbone, facts["layer"], dictionary, bias, heard)
    report("what the language model loses", 0.0)
    llm = loading.load_full_llm(facts["backbone"], settings, report)
    some = held_out[:LOSS_CHATS]
    quality["loss_recovered"] = gauge.measure_loss_recovered(
        some, llm, facts["layer"], gauge.make_reconstruct(dictionary, bias)
    )
    if beside:
        quality["seed_agreement"] = gauge.measure_agreement(dictionary, training.load_sae(beside).dictionary)
    facts["quality"] = {name: round(value, 4) for name, value in quality.items()}
    training.write_provenance(folder, **facts)
    return facts


def read_provenance(folder: Path) -> dict[str, Any]:
    """What is known about an SAE of ours."""
    file = folder / "provenance.json"
    if not file.exists():
        raise SourceError(f"{folder} holds no SAE of ours: provenance.json is missing")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _conversations(chats: list[str]) -> Iterator[Item]:
    return activations.interleave([read_chats(chat) for chat in chats])


def _key(*parts: object) -> str:
    """A short digest of everything that decides an artefact."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
