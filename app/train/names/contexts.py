"""Tokens in context with their residuals: the evidence on which directions are named."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.backbone.packing import PackedBatch, PackedTokenCounter, pack, split_into_batches
from app.data.pairs import hash_to_unit_interval
from app.train.feature_cache import TensorCache
from app.train.features import MAX_BATCH_TOKENS, FeatureExtractor
from app.types import EncodedItem, Pair

TOKENS = 20_000
HALF = 0.5


@dataclass(frozen=True, slots=True)
class TokenContexts:
    """Tokens one after the other: id, residual, and the stretch of text each stands in.

    `since` counts tokens from the start of the response, negative before it. Names are chosen on one half
    of the prompts and scored on the other.
    """

    ids: NDArray[np.int64]
    text_index: NDArray[np.int64]
    response_offset: NDArray[np.int64]
    in_selection_half: NDArray[np.bool_]
    residuals: Tensor


def collect_contexts(
    pairs: list[Pair], reader: FeatureExtractor, cache: Path, report: Callable[[float], None]
) -> TokenContexts:
    """The conversations of the first pairs, up to about 20,000 tokens, kept on the shelf."""
    groups, encoded = _sample(pairs, reader)
    rows = [one.ids for one in encoded]
    key = hashlib.sha256(repr(rows).encode()).hexdigest()[:32]
    kind = f"contexts.{reader.cache_kinds[f'residuals.{reader.layers[0]}']}"
    shelf = TensorCache(cache / "features.sqlite")
    found = shelf.get(kind, [key])
    if not found:
        parts = []
        for some in split_into_batches(rows, MAX_BATCH_TOKENS):
            parts.append(_part([encoded[i] for i in some], [groups[i] for i in some], reader))
            report(sum(len(part["ids"]) for part in parts) / TOKENS)
        firsts = np.cumsum([0, *(int(part["text"].max()) + 1 for part in parts)])
        for part, first in zip(parts, firsts, strict=False):
            part["text"] += int(first)
        found = {key: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}}
        shelf.put([(kind, key, found[key])])
    kept = found[key]
    return TokenContexts(
        kept["ids"].numpy(), kept["text"].numpy(), kept["since"].numpy(), kept["half"].numpy(),
        kept["residuals"].float().to(reader.backbone.device),
    )  # fmt: skip


def _sample(pairs: list[Pair], reader: FeatureExtractor) -> tuple[list[str], list[EncodedItem]]:
    """Whole conversations and their prompt groups, until there are enough tokens."""
    groups: list[str] = []
    found: list[EncodedItem] = []
    size = PackedTokenCounter()
    for pair in pairs:
        if size.num_tokens >= TOKENS:
            break
        for encoded in reader.text.encode(list(pair.items)):
            groups.append(pair.group)
            found.append(encoded)
            size.add(encoded.ids)
    return groups, found


def _part(encoded: list[EncodedItem], groups: list[str], reader: FeatureExtractor) -> dict[str, Tensor]:
    packed = pack([one.ids for one in encoded])
    layer, *_ = reader.layers
    named = {
        "ids": torch.from_numpy(packed.ids),
        "text": torch.from_numpy(_stretches(packed)),
        "since": torch.from_numpy(_since(packed, encoded)),
        "half": torch.from_numpy(_halves(packed, groups)),
        "residuals": reader.backbone.residuals(packed, {layer: packed.computed_rows})[layer]
        .values.cpu()
        .half(),
    }
    kept = torch.from_numpy(packed.positions > 0)
    return {name: tensor[kept] for name, tensor in named.items()}


def _stretches(packed: PackedBatch) -> NDArray[np.int64]:
    return np.concatenate(
        [np.full(segment.stop - segment.start, i) for i, segment in enumerate(packed.segments)]
    )


def _halves(packed: PackedBatch, groups: list[str]) -> NDArray[np.bool_]:
    half = np.zeros(len(packed.ids), dtype=bool)
    for item, group in enumerate(groups):
        for start, stop in packed.item_ranges[item]:
            half[start:stop] = hash_to_unit_interval(f"half/{group}") < HALF
    return half


def _since(packed: PackedBatch, encoded: list[EncodedItem]) -> NDArray[np.int64]:
    since = np.zeros(len(packed.ids), dtype=np.int64)
    for item, one in enumerate(encoded):
        rows = packed.rows(item, 0, len(one.ids))
        since[rows] = np.arange(len(rows)) - one.response_start
    return since
