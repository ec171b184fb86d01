"""The tensors of a bundle: what each must be, checked against the file's header before any is read."""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save_file

from app.errors import BundleError
from app.reward.directions import Dictionary
from app.reward.head import Calibration, Head

if TYPE_CHECKING:
    from app.reward.bundle import ModelCard, RewardModel

DICTIONARY = ("encoder", "bias", "threshold", "directions")
HEAD = ("center", "scale", "w1", "b1", "w2", "b2")
TABLES = ("rewards", "axes", "apart", "distances", "length", "projections")
DECILES = 9
LONGEST_HEADER = 1 << 20
KINDS = {"F16", "F32", "F64"}
Shape = tuple[int | str, ...]


def shapes(card: "ModelCard") -> dict[str, Shape]:
    """The shape of every tensor; a letter is a size that the manifest leaves open, one size everywhere."""
    k, e, h = card.directions, card.heads, card.hidden
    return {
        "sae.encoder": (k, "D"), "sae.bias": (k,), "sae.threshold": (k,), "sae.directions": (k, "D"),
        "head.center": (k,), "head.scale": (k,), "head.w1": (e, h, k), "head.b1": (e, h), "head.w2": (e, h),
        "head.b2": (e,),
        "calibration.rewards": (2, "Q"), "calibration.axes": (k, k), "calibration.apart": (k,),
        "calibration.distances": ("Q",), "calibration.length": (2, "L"),
        "calibration.projections": (k, DECILES),
    }  # fmt: skip


def write(model: "RewardModel", file: Path) -> None:
    """All tensors of a model; the widest in half precision."""
    dictionary, head, calibration = model.dictionary, model.head, model.calibration
    tensors = {
        **{f"sae.{name}": getattr(dictionary, name) for name in DICTIONARY},
        **{f"head.{name}": getattr(head, name) for name in HEAD},
        **{f"calibration.{name}": getattr(calibration, name) for name in TABLES},
    }
    save_file(
        {
            name: tensor.to(torch.half if name == "head.w1" else torch.float).contiguous()
            for name, tensor in tensors.items()
        },
        file,
    )
    file.chmod(0o644)


def read(file: Path, card: "ModelCard") -> tuple[Dictionary, Head, Calibration]:
    """The tensors of a bundle, on the CPU; copied, so that whoever overwrites the file harms nobody."""
    _check(_header(file), card, f"{file.parent.name}/{file.name}")
    found = load(file.read_bytes())
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise BundleError(f"{file.parent.name}: {name} holds numbers that are not finite")
    cpu = torch.device("cpu")
    encoder, bias, threshold, directions = (found[f"sae.{name}"].float() for name in DICTIONARY)
    dictionary = Dictionary(encoder, bias, threshold, directions, card.sae_length)
    head = Head(*(found[f"head.{name}"] for name in HEAD)).to(cpu)
    tables = Calibration(card.temperature, *(found[f"calibration.{name}"] for name in TABLES)).to(cpu)
    return dictionary, head, tables


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kinds and shapes as a safetensors file announces them; no tensor is read for it."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > LONGEST_HEADER:
                raise BundleError(f"{file.parent.name}/{file.name}: a header of {length} bytes")
            announced = json.loads(opened.read(length))
        announced.pop("__metadata__", None)
        return {name: (one["dtype"], tuple(one["shape"])) for name, one in announced.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file.parent.name}/{file.name} is no safetensors file") from error


def _check(announced: dict[str, tuple[str, tuple[int, ...]]], card: "ModelCard", place: str) -> None:
    wanted, open_sizes = shapes(card), dict[str, int]()
    if announced.keys() != wanted.keys():
        odd = sorted(announced.keys() ^ wanted.keys())
        raise BundleError(f"{place}: {', '.join(odd)[:200]}: missing or unknown")
    for name, shape in wanted.items():
        kind, found = announced[name]
        sizes = [
            open_sizes.setdefault(size, one) if isinstance(size, str) else size
            for size, one in zip(shape, found, strict=False)
        ]
        if kind not in KINDS or len(found) != len(shape) or list(found) != sizes or 0 in found:
            raise BundleError(f"{place}: {name} is {kind} {list(found)}, the manifest says {list(shape)}")
