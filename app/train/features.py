"""Extracts the features of preference pairs from the frozen backbone, once, and caches them.

Projections are linear, so the projections on any directions can be computed later from the pooled residuals.
Each response is cached under its own key, so runs that have responses in common share the work.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.packing import pack, split_into_batches
from app.backbone.tokenization import ChatTokenizer
from app.reward.directions import Dictionary
from app.reward.passages import PASSAGE_RULE, mark_sentence_ends
from app.train.feature_cache import TensorCache, Tensors
from app.train.passage_features import summarise_passages
from app.types import EncodedItem, Item, Pooling

MAX_BATCH_TOKENS = 4096
"""New tokens of one forward pass during extraction."""
POOLINGS = tuple(Pooling)
CACHE_FILE = "features.sqlite"
CachedRow = tuple[str, str, Tensors]
"""What is cached of a response: feature name, cache key of the response, tensors."""


@dataclass(frozen=True, slots=True)
class FeatureExtractor:
    """A backbone, the layers that are extracted, and the SAE of single tokens that encodes the first of them.

    Without a token SAE, `dictionary` is None and no latents are extracted. With `passages`, the first layer
    is also extracted by passage.
    """

    backbone: Backbone
    tokenizer: ChatTokenizer
    layers: tuple[int, ...]
    dictionary: Dictionary | None = None
    sae_sha256: str = ""
    passages: bool = False

    @property
    def layer(self) -> int:
        """The layer that is read, and that the token SAE encodes."""
        return self.layers[0]

    @property
    def cache_kinds(self) -> dict[str, str]:
        """For each feature name, a digest of everything that determines the feature besides the response."""
        frozen = (
            self.backbone.digest,
            self.tokenizer.template_sha256,
            str(self.tokenizer.max_tokens),
            str(self.backbone.dtype),
        )
        sources = {f"residuals.{layer}": str(layer) for layer in self.layers}
        if self.dictionary:
            sources["latents"] = f"{self.layer}/{self.sae_sha256}"
        if self.passages:
            sources["passages"] = f"{self.layer}/passages/{PASSAGE_RULE}"
        return {
            name: hashlib.sha256("/".join((*frozen, *source.split("/"))).encode()).hexdigest()[:24]
            for name, source in sources.items()
        }


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """The features of U unique responses, and which of them each pair consists of.

    `response_index` is (N, 2), chosen first, or (N, M) for other rows of responses. `token_counts` is (U).
    `residuals[layer]` is (U, 3, D), one vector for each Pooling. `latents` holds for each response and
    pooling which latents fired, on what share of the pooled tokens, and their mean activation; `passages`
    holds each response's residuals by passage. Either is empty if it was not extracted.
    """

    response_index: Tensor
    token_counts: Tensor
    residuals: dict[int, Tensor]
    latents: list[dict[str, Tensor]]
    num_latents: int
    passages: list[dict[str, Tensor]] = field(default_factory=list)

    def pooled_residuals(self, layer: int, pooling: Pooling) -> Tensor:
        """Return the pooled residuals of each pair's responses, (N, 2, D)."""
        return self.residuals[layer][:, POOLINGS.index(pooling)][self.response_index]

    def lengths(self) -> Tensor:
        """Return the number of response tokens, (N, 2)."""
        return self.token_counts[self.response_index]

    def pooled_lengths(self, pooling: Pooling) -> Tensor:
        """Return the number of tokens that a pooling averages, (N, 2)."""
        lengths = self.lengths()
        return lengths if pooling is Pooling.MEAN else torch.ones_like(lengths)

    def firing_rates(self, pooling: Pooling) -> Tensor:
        """Return the share of pooled tokens on which each latent fires, (N, 2, F)."""
        return self._to_dense("shares", pooling)[self.response_index]

    def mean_activations(self, pooling: Pooling) -> Tensor:
        """Return the mean activation of each latent over the pooled tokens, (N, 2, F)."""
        return self._to_dense("means", pooling)[self.response_index]

    def subset(self, rows: Sequence[int]) -> "PairFeatures":
        """Return the features of some of the pairs, by index."""
        return PairFeatures(
            self.response_index[list(rows)], self.token_counts, self.residuals, self.latents,
            self.num_latents, self.passages,
        )  # fmt: skip

    def replace_responses(
        self, rows: Sequence[int], replacements: Tensor, others: "PairFeatures"
    ) -> "PairFeatures":
        """Return some of the pairs with other responses in place of their own.

        `replacements` (R, 2) is for each side of a pair the row of `others`, whose rows are single responses,
        or -1 where the pair keeps its own response.
        """
        other_index = others.response_index[replacements.clamp(min=0), 0] + len(self.token_counts)
        return PairFeatures(
            torch.where(replacements < 0, self.response_index[list(rows)], other_index),
            torch.cat([self.token_counts, others.token_counts]),
            {
                layer: torch.cat([self.residuals[layer], residuals])
                for layer, residuals in others.residuals.items()
            },
            self.latents + others.latents,
            self.num_latents,
            self.passages + others.passages,
        )

    def _to_dense(self, name: str, pooling: Pooling) -> Tensor:
        dense = torch.zeros(len(self.latents), self.num_latents, dtype=torch.half)
        for row, sparse in enumerate(self.latents):
            dense[row, sparse[f"{pooling}.which"].long()] = sparse[f"{pooling}.{name}"]
        return dense


def extract_features(
    responses: Sequence[tuple[Item, ...]],
    extractor: FeatureExtractor,
    cache: Path,
    progress: Callable[[int], None],
) -> PairFeatures:
    """Return the features of rows of responses, usually pairs; `progress` receives how many are done.

    Batches do not depend on what is cached and cached rows are not overwritten, so a killed run ends with the
    same features as an uninterrupted one.
    """
    items = list(dict.fromkeys(item for row in responses for item in row))
    keys = [_make_cache_key(item) for item in items]
    store = TensorCache(cache / CACHE_FILE)
    cached = {name: store.get(kind, keys) for name, kind in extractor.cache_kinds.items()}
    missing = {name for name, rows in cached.items() if any(key not in rows for key in keys)}
    done = 0
    encoded = extractor.tokenizer.encode(items) if missing else []
    for batch in split_into_batches([item.ids for item in encoded], MAX_BATCH_TOKENS):
        if any(keys[i] not in cached[name] for name in missing for i in batch):
            computed = _compute_features(
                [encoded[i] for i in batch], [keys[i] for i in batch], extractor, missing
            )
            rows = [(name, key, tensors) for name, key, tensors in computed if key not in cached[name]]
            store.put([(extractor.cache_kinds[name], key, tensors) for name, key, tensors in rows])
            for name, key, tensors in rows:
                cached[name][key] = dict(tensors)
        done += len(batch)
        progress(done)
    progress(len(items))
    index = {item: i for i, item in enumerate(items)}
    response_index = torch.tensor([[index[item] for item in row] for row in responses])
    rows_by_name = [{name: rows[key] for name, rows in cached.items()} for key in keys]
    return _collect_features(response_index, rows_by_name, extractor)


def _collect_features(
    response_index: Tensor, responses: list[dict[str, dict[str, Tensor]]], extractor: FeatureExtractor
) -> PairFeatures:
    first = f"residuals.{extractor.layer}"
    return PairFeatures(
        response_index=response_index,
        token_counts=torch.tensor([int(response[first]["tokens"]) for response in responses]),
        residuals={
            layer: torch.stack([response[f"residuals.{layer}"]["pooled"] for response in responses])
            for layer in extractor.layers
        },
        latents=[response["latents"] for response in responses if "latents" in response],
        num_latents=len(extractor.dictionary.bias) if extractor.dictionary else 0,
        passages=[response["passages"] for response in responses if "passages" in response],
    )


def _compute_features(
    encoded: list[EncodedItem], keys: list[str], extractor: FeatureExtractor, missing: set[str]
) -> Iterator[CachedRow]:
    """Yield the missing features of the responses of one forward pass."""
    packed = pack([item.ids for item in encoded])
    layers = [layer for layer in extractor.layers if f"residuals.{layer}" in missing]
    rows = [packed.rows(i, item.response_start, item.response_end + 1) for i, item in enumerate(encoded)]
    needed = {*layers, *([extractor.layer] if missing & {"latents", "passages"} else [])}
    residuals = extractor.backbone.residuals(packed, dict.fromkeys(needed, np.concatenate(rows)))
    for item, key, item_rows in zip(encoded, keys, rows, strict=True):
        for layer in layers:
            pooled = _pool(residuals[layer].at(item_rows)).cpu()
            tokens = torch.tensor(item.response_end - item.response_start)
            yield f"residuals.{layer}", key, {"pooled": pooled, "tokens": tokens}
        if "passages" in missing:
            marks = mark_sentence_ends(item, item.response_turn)
            yield "passages", key, summarise_passages(residuals[extractor.layer].at(item_rows[:-1]), marks)
        if "latents" in missing and extractor.dictionary:
            activations = extractor.dictionary.encode(residuals[extractor.layer].at(item_rows))
            yield "latents", key, _summarise_activations(activations)


def _pool(rows: Tensor) -> Tensor:
    """Return the mean over the response, its last token and the closing token: the order of Pooling."""
    return torch.stack([rows[:-1].mean(0), rows[-2], rows[-1]])


def _summarise_activations(activations: Tensor) -> dict[str, Tensor]:
    """For each pooling, return the latents that fire, their firing rates and their mean activations."""
    shares, means = _pool((activations > 0).float()).cpu(), _pool(activations).cpu()
    tensors: dict[str, Tensor] = {}
    for index, pooling in enumerate(POOLINGS):
        latents = shares[index].nonzero().squeeze(1)
        tensors[f"{pooling}.which"] = latents.int()
        tensors[f"{pooling}.shares"] = shares[index, latents].half()
        tensors[f"{pooling}.means"] = means[index, latents].half()
    return tensors


def _make_cache_key(item: Item) -> str:
    return hashlib.sha256(repr(item).encode()).hexdigest()[:32]
