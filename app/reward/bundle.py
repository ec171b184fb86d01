"""Reward models on disk: manifest, safetensors, features, concepts, probes, profiles, and SHA256SUMS.

`load_bundle` validates every file: digests must match SHA256SUMS, and tensors must have the shapes that the
manifest implies. `check_backbone_matches` compares the model with the backbone. The engine scores the probes.
"""

import hashlib
import json
import math
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from app.errors import BundleError
from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.head import Head
from app.reward.reward_model import (
    READABLE_SCHEMAS,
    Concept,
    ModelCard,
    Probe,
    RewardModel,
    check_concepts,
    list_tested,
)
from app.types import Feature, HeadKind, Pooling, Profile

MAX_STEERING_FACTOR = 1000.0
MAX_DIMENSION = 1 << 20
"""Maximum layer, number of directions, heads or hidden units in a manifest."""

MAX_HEADER_BYTES = 1 << 20
ALLOWED_DTYPES = {"F16", "F32", "F64"}
DECILES = 9
DIGESTED_FILES = ("manifest.json", "weights.safetensors", "features.json", "probes.json")
CONCEPTS_FILE = "concepts.json"
"""A file with a digest that a bundle may lack."""
DICTIONARY_TENSORS = ("encoder", "bias", "threshold", "directions")
HEAD_TENSORS = ("center", "scale", "w1", "b1", "w2", "b2")
CALIBRATION_TENSORS = {
    "rewards": "reward_quantiles",
    "axes": "whitening",
    "apart": "response_variance",
    "distances": "distance_quantiles",
    "length": "length_trend",
    "projections": "standardised_deciles",
}
"""Names of the calibration tensors in the file, with the attributes of `Calibration` that hold them."""

TensorShape = tuple[int | str, ...]


def save_bundle(model: RewardModel, folder: Path) -> None:
    """Write a bundle. SHA256SUMS is written last, so that an incomplete bundle never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    _save_weights(model, folder / "weights.safetensors")
    probes = [{"exchange": asdict(probe.item), "reward": probe.reward} for probe in model.probes]
    _write_json(folder / "manifest.json", asdict(model.card))
    _write_json(folder / "features.json", [asdict(feature) for feature in model.features])
    _write_json(folder / "probes.json", probes)
    _save_concepts(model, folder)
    _write_digests(folder)


def save_names(model: RewardModel, folder: Path) -> None:
    """Write the features and concepts of a bundle that exists; its other files stay as they are."""
    check_concepts(list_tested(model.concepts), model.features)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    _write_json(folder / "features.json", [asdict(feature) for feature in model.features])
    _save_concepts(model, folder)
    _write_digests(folder)


def _save_concepts(model: RewardModel, folder: Path) -> None:
    """Write the concepts that were tested; the others are made from labels when the bundle is loaded."""
    (folder / CONCEPTS_FILE).unlink(missing_ok=True)
    if tested := list_tested(model.concepts):
        _write_json(folder / CONCEPTS_FILE, [asdict(concept) for concept in tested])


def _write_digests(folder: Path) -> None:
    """Write SHA256SUMS from the files as they are."""
    names = [*DIGESTED_FILES, *([CONCEPTS_FILE] if (folder / CONCEPTS_FILE).exists() else [])]
    (folder / "SHA256SUMS").write_text("".join(f"{_sha256(folder / name)}  {name}\n" for name in names))


def load_bundle(folder: Path) -> RewardModel:
    """Read a bundle onto the CPU; raise BundleError if a file is missing, changed or inconsistent."""
    _check_digests(folder)
    card = _parse_json(folder / "manifest.json", ModelCard)
    if card.schema not in READABLE_SCHEMAS:
        readable = " and ".join(map(str, READABLE_SCHEMAS))
        raise BundleError(
            f"{folder.name}: bundle schema {card.schema}; this version reads schemas {readable}"
        )
    _check_card(card)
    dictionary, head, calibration = _load_weights(folder / "weights.safetensors", card)
    features = _parse_json(folder / "features.json", tuple[Feature, ...])
    probes = _parse_json(folder / "probes.json", tuple[Probe, ...])
    latents = {feature.latent for feature in features}
    if not probes or not len(latents) == len(features) == card.directions:
        raise BundleError(
            f"{folder.name}: needs probes and one feature for each of {card.directions} directions"
        )
    concepts = _load_concepts(folder, features)
    model = RewardModel(card, dictionary, head, calibration, features, probes, concepts=concepts)
    return replace(model, profiles=_load_profiles(model, folder / "profiles"))


def check_backbone_matches(
    model: RewardModel, *, backbone: str, template: str, width: int, layers: int
) -> None:
    """Raise BundleError if the model was trained on another backbone or chat template."""
    card = model.card
    for part, trained, loaded in (
        ("backbone", card.backbone_digest, backbone),
        ("chat template", f"sha256:{card.template_sha256}", f"sha256:{template}"),
    ):
        if trained != loaded:
            raise BundleError(f"{card.name}: trained on {part} {trained}, but this one is {loaded}")
    if model.dictionary.directions.shape[1] != width:
        raise BundleError(f"{card.name}: its directions do not fit a backbone of width {width}")
    if card.layer > layers:
        raise BundleError(
            f"{card.name} uses layer {card.layer}, but the backbone is loaded up to layer {layers}; "
            "restart to serve it"
        )


def list_bundles(models_dir: Path) -> list[str]:
    """Return the names of the bundles in a folder."""
    return sorted(manifest.parent.name for manifest in models_dir.glob("*/manifest.json"))


def _expected_shapes(card: ModelCard) -> dict[str, TensorShape]:
    """Return the shape of each tensor. Letters are sizes that the manifest leaves open, equal everywhere."""
    k, e, h = card.directions, card.heads, card.hidden
    return {
        "sae.encoder": (k, "D"), "sae.bias": (k,), "sae.threshold": (k,), "sae.directions": (k, "D"),
        "head.center": (k,), "head.scale": (k,), "head.w1": (e, h, k), "head.b1": (e, h), "head.w2": (e, h),
        "head.b2": (e,),
        "calibration.rewards": (2, "Q"), "calibration.axes": (k, k), "calibration.apart": (k,),
        "calibration.distances": ("Q",), "calibration.length": (2, "L"),
        "calibration.projections": (k, DECILES),
    }  # fmt: skip


def _save_weights(model: RewardModel, file: Path) -> None:
    """Write all tensors of a model in single precision; those of a network's head.w1 in half precision."""
    tensors = {
        **{f"sae.{name}": getattr(model.dictionary, name) for name in DICTIONARY_TENSORS},
        **{f"head.{name}": getattr(model.head, name) for name in HEAD_TENSORS},
        **{
            f"calibration.{name}": getattr(model.calibration, attribute)
            for name, attribute in CALIBRATION_TENSORS.items()
        },
    }
    has_large_w1 = model.head.kind is HeadKind.NETWORK
    save_file(
        {
            name: tensor.to(torch.half if name == "head.w1" and has_large_w1 else torch.float).contiguous()
            for name, tensor in tensors.items()
        },
        file,
    )
    file.chmod(0o644)


def _load_weights(file: Path, card: ModelCard) -> tuple[Dictionary, Head, Calibration]:
    """Read the tensors of a bundle into memory, so that overwriting the file later changes nothing."""
    try:
        _check_shapes(_read_header(file), card, f"{file.parent.name}/{file.name}")
        tensors = load(file.read_bytes())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file.parent.name}/{file.name}: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BundleError(f"{file.parent.name}: {name} has values that are not finite")
    cpu = torch.device("cpu")
    encoder, bias, threshold, directions = (tensors[f"sae.{name}"].float() for name in DICTIONARY_TENSORS)
    dictionary = Dictionary(encoder, bias, threshold, directions, card.sae_length)
    center, scale, w1, b1, w2, b2 = (tensors[f"head.{name}"] for name in HEAD_TENSORS)
    head = Head(center, scale, w1, b1, w2, b2, card.head_kind).to(cpu)
    tables = {attribute: tensors[f"calibration.{name}"] for name, attribute in CALIBRATION_TENSORS.items()}
    return dictionary, head, Calibration(card.temperature, **tables).to(cpu)


def _read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each tensor from a safetensors header, without reading any tensor."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise BundleError(f"{file.parent.name}/{file.name}: the header has {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file.parent.name}/{file.name} is not a safetensors file") from error


def _check_shapes(header: dict[str, tuple[str, tuple[int, ...]]], card: ModelCard, location: str) -> None:
    expected, open_sizes = _expected_shapes(card), dict[str, int]()
    if header.keys() != expected.keys():
        names = sorted(header.keys() ^ expected.keys())
        raise BundleError(f"{location}: missing or unknown tensors: {', '.join(names)[:200]}")
    for name, expected_shape in expected.items():
        dtype, shape = header[name]
        sizes = [
            open_sizes.setdefault(expected_size, size) if isinstance(expected_size, str) else expected_size
            for expected_size, size in zip(expected_shape, shape, strict=False)
        ]
        is_valid = dtype in ALLOWED_DTYPES and len(shape) == len(expected_shape) and list(shape) == sizes
        if not is_valid or 0 in shape:
            raise BundleError(
                f"{location}: {name} is {dtype} {list(shape)}; the manifest requires {list(expected_shape)}"
            )


def _load_profiles(model: RewardModel, folder: Path) -> dict[str, Profile]:
    """Read the profiles. They are the user's own files, without digests, but validated as strictly."""
    profiles = {file.stem: _parse_json(file, Profile) for file in sorted(folder.glob("*.json"))}
    for name, profile in profiles.items():
        for key, factor in profile.steer.items():
            if not model.find_directions(key):
                raise BundleError(f"{model.card.name}@{name}: no latent or concept {key!r} in this model")
            if not abs(factor) <= MAX_STEERING_FACTOR:
                raise BundleError(f"{model.card.name}@{name}: factor {factor} of {key!r} is not within ±1000")
    return profiles


def _load_concepts(folder: Path, features: tuple[Feature, ...]) -> tuple[Concept, ...]:
    """Read the concepts of a bundle; none if it has no concepts.json."""
    if not (folder / CONCEPTS_FILE).exists():
        return ()
    concepts: tuple[Concept, ...] = _parse_json(folder / CONCEPTS_FILE, tuple[Concept, ...])
    try:
        check_concepts(concepts, features)
    except ValueError as error:
        raise BundleError(f"{folder.name}/{CONCEPTS_FILE}: {error}") from error
    return concepts


def _check_card(card: ModelCard) -> None:
    """Raise BundleError for sizes and scales in a manifest that no model can have."""
    for name in ("layer", "directions", "heads", "hidden"):
        if not 0 < getattr(card, name) <= MAX_DIMENSION:
            raise BundleError(f"{card.name[:200]}: {name} is {getattr(card, name)}")
    if not (math.isfinite(card.temperature) and card.temperature > 0):
        raise BundleError(f"{card.name[:200]}: temperature is {card.temperature}")
    if not (math.isfinite(card.sae_length) and card.sae_length >= 0):
        raise BundleError(f"{card.name[:200]}: sae_length is {card.sae_length}")
    if card.passages and card.readout is not Pooling.MEAN:
        raise BundleError(f"{card.name[:200]}: passages need readout mean, not {card.readout}")


def _check_digests(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise BundleError(f"{folder}: not a bundle (SHA256SUMS is missing)")
    lines = [line.partition("  ") for line in sums.read_text(errors="replace").splitlines()]
    expected = {name: digest for digest, _, name in lines}
    optional = [CONCEPTS_FILE] if CONCEPTS_FILE in expected or (folder / CONCEPTS_FILE).exists() else []
    for name in (*DIGESTED_FILES, *optional):
        if not (folder / name).exists():
            raise BundleError(f"{folder.name}: {name} is missing")
        digest = _sha256(folder / name)
        if expected.get(name) != digest:
            raise BundleError(
                f"{folder.name}: {name} has sha256 {digest}, SHA256SUMS says {expected.get(name)}"
            )


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _parse_json(file: Path, type_: Any) -> Any:
    try:
        return TypeAdapter(type_).validate_json(file.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{file.parent.name}/{file.name}: {error}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
