"""Collects tokens in context with their residuals, on which features are named and heads are calibrated."""

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
from app.train.features import CACHE_FILE, MAX_BATCH_TOKENS, FeatureExtractor
from app.types import EncodedItem, Pair

NUM_TOKENS = 20_000
"""Conversations are added until there are this many tokens."""
SELECTION_SHARE = 0.5
"""Share of the prompts on which names are selected; the others score them."""


@dataclass(frozen=True, slots=True)
class TokenContexts:
    """T tokens one after the other: id, residual (T, D), and the index of the text segment each is in.

    `response_offset` counts tokens from the start of the response, negative before it. `in_selection_half`
    marks the tokens on which names are selected; names are scored on the others.
    """

    ids: NDArray[np.int64]
    text_index: NDArray[np.int64]
    response_offset: NDArray[np.int64]
    in_selection_half: NDArray[np.bool_]
    residuals: Tensor


def collect_contexts(
    pairs: list[Pair], extractor: FeatureExtractor, cache: Path, progress: Callable[[float], None]
) -> TokenContexts:
    """Return the tokens of the conversations of the first pairs, about NUM_TOKENS in all; they are cached."""
    groups, encoded = _sample_conversations(pairs, extractor)
    ids = [item.ids for item in encoded]
    key = hashlib.sha256(repr(ids).encode()).hexdigest()[:32]
    kind = f"contexts.{extractor.cache_kinds[f'residuals.{extractor.layer}']}"
    store = TensorCache(cache / CACHE_FILE)
    cached = store.get(kind, [key])
    if not cached:
        parts = []
        for batch in split_into_batches(ids, MAX_BATCH_TOKENS):
            part = _compute_contexts([encoded[i] for i in batch], [groups[i] for i in batch], extractor)
            parts.append(part)
            progress(sum(len(part["ids"]) for part in parts) / NUM_TOKENS)
        cached = {key: _concatenate(parts)}
        store.put([(kind, key, cached[key])])
    tensors = cached[key]
    return TokenContexts(
        tensors["ids"].numpy(), tensors["text"].numpy(), tensors["since"].numpy(), tensors["half"].numpy(),
        tensors["residuals"].float().to(extractor.backbone.device),
    )  # fmt: skip


def _sample_conversations(
    pairs: list[Pair], extractor: FeatureExtractor
) -> tuple[list[str], list[EncodedItem]]:
    """Return whole conversations and their prompt groups, until there are enough tokens."""
    groups: list[str] = []
    items: list[EncodedItem] = []
    counter = PackedTokenCounter()
    for pair in pairs:
        if counter.num_tokens >= NUM_TOKENS:
            break
        for encoded in extractor.tokenizer.encode(list(pair.items)):
            groups.append(pair.group)
            items.append(encoded)
            counter.add(encoded.ids)
    return groups, items


def _compute_contexts(
    encoded: list[EncodedItem], groups: list[str], extractor: FeatureExtractor
) -> dict[str, Tensor]:
    """Run one forward pass; return the tokens as they are cached, without the first token of each text."""
    packed = pack([item.ids for item in encoded])
    rows = {extractor.layer: packed.computed_rows}
    tensors = {
        "ids": torch.from_numpy(packed.ids),
        "text": torch.from_numpy(_index_segments(packed)),
        "since": torch.from_numpy(_compute_response_offsets(packed, encoded)),
        "half": torch.from_numpy(_mark_selection_half(packed, groups)),
        "residuals": extractor.backbone.residuals(packed, rows)[extractor.layer].values.cpu().half(),
    }
    after_first = torch.from_numpy(packed.positions > 0)
    return {name: tensor[after_first] for name, tensor in tensors.items()}


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the tokens of all batches; segments are numbered consecutively."""
    first_index = np.cumsum([0, *(int(part["text"].max()) + 1 for part in parts)])
    for part, first in zip(parts, first_index, strict=False):
        part["text"] += int(first)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _index_segments(packed: PackedBatch) -> NDArray[np.int64]:
    return np.concatenate(
        [np.full(segment.stop - segment.start, i) for i, segment in enumerate(packed.segments)]
    )


def _mark_selection_half(packed: PackedBatch, groups: list[str]) -> NDArray[np.bool_]:
    mask = np.zeros(len(packed.ids), dtype=bool)
    for item, group in enumerate(groups):
        for start, stop in packed.item_ranges[item]:
            mask[start:stop] = hash_to_unit_interval(f"half/{group}") < SELECTION_SHARE
    return mask


def _compute_response_offsets(packed: PackedBatch, encoded: list[EncodedItem]) -> NDArray[np.int64]:
    offsets = np.zeros(len(packed.ids), dtype=np.int64)
    for index, item in enumerate(encoded):
        rows = packed.rows(index, 0, len(item.ids))
        offsets[rows] = np.arange(len(rows)) - item.response_start
    return offsets
