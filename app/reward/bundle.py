"""A reward model on disk: manifest, safetensors, features, probes, report, and digests of them all.

`load` believes nothing: files must match SHA256SUMS, and the template and backbone must be the ones
the model was trained on. The probes, a few exchanges with known rewards, are run by the engine.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from app.errors import BundleError
from app.reward import bundle_weights
from app.reward.directions import Dictionary
from app.reward.head import Calibration, Head
from app.types import FORBID_EXTRA, Feature, Item, Pooling, Profile

SCHEMA = 2
MOST_STEERING = 1000.0
LARGEST = 1 << 20
SEALED = ("manifest.json", "weights.safetensors", "features.json", "probes.json")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A file a model was trained on."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    sha256: str
    pairs: int
    license: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The manifest: everything about a reward model but its numbers."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    task: str
    backbone: str
    backbone_digest: str
    template_sha256: str
    layer: int
    readout: Pooling
    directions: int
    heads: int
    hidden: int
    loss: str
    sae: str
    sae_sha256: str
    data: tuple[TrainingData, ...]
    use: str
    temperature: float
    metrics: dict[str, float]
    trained_parameters: int
    versions: dict[str, str]
    sae_length: float = 0.0
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Probe:
    """An exchange and the reward it had when the bundle was made."""

    __pydantic_config__ = FORBID_EXTRA
    exchange: Item
    reward: float


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A loaded bundle."""

    card: ModelCard
    dictionary: Dictionary
    head: Head
    calibration: Calibration
    features: tuple[Feature, ...]
    probes: tuple[Probe, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    index: dict[int, int] = field(init=False)
    clusters: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        named: dict[str, list[int]] = {}
        for place, feature in enumerate(self.features):
            if feature.label:
                named.setdefault(feature.label, []).append(place)
        object.__setattr__(self, "index", {f.latent: i for i, f in enumerate(self.features)})
        object.__setattr__(self, "clusters", named)

    @property
    def deciles(self) -> Tensor:
        """Nine deciles of each projection on held-out training prompts, (K, 9)."""
        return self.head.center[:, None] + self.head.scale[:, None] * self.calibration.projections

    def places(self, key: str) -> list[int]:
        """The directions a key means: a latent by number, or a cluster by name; none if it means nothing."""
        if key.isdecimal() and int(key) in self.index:
            return [self.index[int(key)]]
        return self.clusters.get(key, [])

    def to(self, device: torch.device) -> "RewardModel":
        """The same model with its tensors on a device; itself if they are there."""
        if self.dictionary.directions.device == device:
            return self
        return replace(
            self,
            dictionary=self.dictionary.to(device),
            head=self.head.to(device),
            calibration=self.calibration.to(device),
        )


def save(model: RewardModel, folder: Path) -> None:
    """Write a bundle; SHA256SUMS comes last, so half a bundle never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    bundle_weights.write(model, folder / "weights.safetensors")
    _write(folder / "manifest.json", asdict(model.card))
    _write(folder / "features.json", [asdict(feature) for feature in model.features])
    _write(folder / "probes.json", [asdict(probe) for probe in model.probes])
    sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in SEALED)
    (folder / "SHA256SUMS").write_text(sums)


def load(folder: Path) -> RewardModel:
    """Read a bundle whose every file is what SHA256SUMS says."""
    _check_digests(folder)
    card = _parse(folder / "manifest.json", ModelCard)
    if card.schema != SCHEMA:
        raise BundleError(f"{folder.name}: bundle schema {card.schema}; this version reads schema {SCHEMA}")
    _check_sizes(card)
    try:
        tensors = bundle_weights.read(folder / "weights.safetensors", card)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{folder.name}/weights.safetensors: {error}") from error
    features = _parse(folder / "features.json", tuple[Feature, ...])
    probes = _parse(folder / "probes.json", tuple[Probe, ...])
    if not probes or not len({one.latent for one in features}) == len(features) == card.directions:
        raise BundleError(f"{folder.name}: one feature for each of {card.directions} directions, and probes")
    model = RewardModel(card, *tensors, features, probes)
    return replace(model, profiles=_profiles(model, folder / "profiles"))


def check_home(model: RewardModel, *, backbone: str, template: str, width: int, layers: int) -> None:
    """Refuse a model on a backbone or chat template other than its own."""
    card = model.card
    for what, trained, found in (
        ("backbone", card.backbone_digest, backbone),
        ("chat template", f"sha256:{card.template_sha256}", f"sha256:{template}"),
    ):
        if trained != found:
            raise BundleError(f"{card.name}: trained on {what} {trained}, but this one is {found}")
    if model.dictionary.directions.shape[1] != width:
        raise BundleError(f"{card.name}: its directions do not fit a backbone of width {width}")
    if card.layer > layers:
        raise BundleError(
            f"{card.name} reads layer {card.layer}, but the backbone ends after layer {layers}; "
            "restart to serve it"
        )


def names(models_dir: Path) -> list[str]:
    """The bundles in a folder."""
    return sorted(manifest.parent.name for manifest in models_dir.glob("*/manifest.json"))


def _profiles(model: RewardModel, folder: Path) -> dict[str, Profile]:
    """Profiles are users' own files: not sealed, but read as strictly."""
    found = {file.stem: _parse(file, Profile) for file in sorted(folder.glob("*.json"))}
    for name, profile in found.items():
        for key, factor in profile.steer.items():
            if not model.places(key):
                raise BundleError(f"{model.card.name}@{name}: no latent or cluster {key!r} in this model")
            if not abs(factor) <= MOST_STEERING:
                raise BundleError(f"{model.card.name}@{name}: factor {factor} of {key!r} is not within ±1000")
    return found


def _check_sizes(card: ModelCard) -> None:
    """Numbers of a manifest that would make no model."""
    sizes = {name: getattr(card, name) for name in ("layer", "directions", "heads", "hidden")}
    for name, size in sizes.items():
        if not 0 < size <= LARGEST:
            raise BundleError(f"{card.name[:200]}: {name} is {size}")
    if not (math.isfinite(card.temperature) and card.temperature > 0):
        raise BundleError(f"{card.name[:200]}: temperature is {card.temperature}")
    if not (math.isfinite(card.sae_length) and card.sae_length >= 0):
        raise BundleError(f"{card.name[:200]}: sae_length is {card.sae_length}")


def _check_digests(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise BundleError(f"{folder}: no bundle here (SHA256SUMS is missing)")
    lines = [line.partition("  ") for line in sums.read_text(errors="replace").splitlines()]
    listed = {name: digest for digest, _, name in lines}
    for name in SEALED:
        if not (folder / name).exists():
            raise BundleError(f"{folder.name}: {name} is missing")
        found = _sha256(folder / name)
        if listed.get(name) != found:
            raise BundleError(f"{folder.name}: {name} has sha256 {found}, SHA256SUMS says {listed.get(name)}")


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _parse(file: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{file.parent.name}/{file.name}: {error}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
