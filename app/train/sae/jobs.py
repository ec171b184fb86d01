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
class SaeOrder:
    """Which SAE to make."""

    backbone: str
    layer: int
    width: int
    k: float
    rows: int
    samples: int
    seed: int


def make(what: SaeOrder, chats: list[str], out: Path, settings: Settings, report: Progress) -> dict[str, Any]:
    """Harvest activations, train an SAE on them, and measure it on conversations it has not seen."""
    short = settings.model_copy(update={"max_tokens": CHAT_TOKENS})
    backbone, text = loading.resident(what.backbone, what.layer, short, report)
    sources = {Path(chat).name: source_sha256(chat) for chat in chats}
    key = _key(backbone.digest, text.digest, what.layer, sources)
    store = activations.Store(settings.cache / "activations" / key, backbone.width)
    activations.harvest(
        islice(_conversations(chats), HELD_OUT, None),
        backbone=backbone,
        text=text,
        layer=what.layer,
        rows=what.rows,
        store=store,
        report=lambda rows: report("harvesting activations", rows / what.rows),
    )
    rows = store.rows()[: what.rows]
    training.train(
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
    training.note(out, **facts)
    return measure(out, chats, None, settings, report)


def measure(
    folder: Path, chats: list[str], beside: Path | None, settings: Settings, report: Progress
) -> dict[str, Any]:
    """Measure an SAE on the first conversations of its chats, which training leaves out, and note it down."""
    facts = provenance(folder)
    short = settings.model_copy(update={"max_tokens": CHAT_TOKENS})
    backbone, text = loading.resident(facts["backbone"], facts["layer"], short, report)
    found = training.load(folder)
    dictionary, bias = found.apart().to(backbone.device), found.bias.to(backbone.device)
    held_out = text.encode(list(islice(_conversations(chats), HELD_OUT)))
    heard = lambda done: report("held-out conversations", done / len(held_out))  # noqa: E731 # read once, below
    quality = gauge.fidelity(held_out, backbone, facts["layer"], dictionary, bias, heard)
    report("what the language model loses", 0.0)
    llm = loading.llm(facts["backbone"], settings, report)
    some = held_out[:LOSS_CHATS]
    quality["loss_recovered"] = gauge.recovered(some, llm, facts["layer"], gauge.rebuilding(dictionary, bias))
    if beside:
        quality["seed_agreement"] = gauge.agreement(dictionary, training.load(beside).dictionary)
    facts["quality"] = {name: round(value, 4) for name, value in quality.items()}
    training.note(folder, **facts)
    return facts


def provenance(folder: Path) -> dict[str, Any]:
    """What is known about an SAE of ours."""
    file = folder / "provenance.json"
    if not file.exists():
        raise SourceError(f"{folder} holds no SAE of ours: provenance.json is missing")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _conversations(chats: list[str]) -> Iterator[Item]:
    return activations.mixed([read_chats(chat) for chat in chats])


def _key(*parts: object) -> str:
    """A short digest of everything that decides an artefact."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
