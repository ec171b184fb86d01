"""The frozen half over preference pairs, computed once and kept: what every read-out sees of a response.

Projections are linear, so any choice of directions can be read from the pooled residuals later.
Each response is kept under its own key, so runs that share responses share the work.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.packing import pack, split_into_batches
from app.backbone.tokenization import Text
from app.reward.directions import Dictionary
from app.train.feature_cache import TensorCache
from app.types import EncodedItem, Item, Pooling

MAX_BATCH_TOKENS = 4096
READOUTS = tuple(Pooling)


@dataclass(frozen=True, slots=True)
class FeatureExtractor:
    """The layers that are read, and the dictionary that reads the first of them."""

    backbone: Backbone
    text: Text
    layers: tuple[int, ...]
    dictionary: Dictionary
    sae_sha256: str

    @property
    def cache_kinds(self) -> dict[str, str]:
        """Digests of all that decides a residual or an activation, by what the table calls them."""
        frozen = (self.backbone.digest, self.text.digest, str(self.text.max_tokens), str(self.backbone.dtype))
        named = {f"residuals.{layer}": str(layer) for layer in self.layers}
        named["latents"] = f"{self.layers[0]}/{self.sae_sha256}"
        return {
            name: hashlib.sha256("/".join((*frozen, *what.split("/"))).encode()).hexdigest()[:24]
            for name, what in named.items()
        }


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Pairs as places in a list of unique responses, and what was read of each of those.

    `place` is (N, 2), chosen first, or (N, M) for other rows of responses; `residuals[layer]` is (U, 3, D)
    over the read-outs; `latents` holds, per response and read-out, which latents fired, on what share of
    tokens and how strongly on average.
    """

    response_index: Tensor
    token_counts: Tensor
    residuals: dict[int, Tensor]
    latents: list[dict[str, Tensor]]
    num_latents: int

    def pooled_residuals(self, layer: int, readout: Pooling) -> Tensor:
        """(N, 2, D) pooled residuals."""
        return self.residuals[layer][:, READOUTS.index(readout)][self.response_index]

    def lengths(self) -> Tensor:
        """(N, 2) response tokens."""
        return self.token_counts[self.response_index]

    def pooled_lengths(self, readout: Pooling) -> Tensor:
        """(N, 2) tokens a read-out pools."""
        lengths = self.lengths()
        return lengths if readout is Pooling.MEAN else torch.ones_like(lengths)

    def firing_rates(self, readout: Pooling) -> Tensor:
        """(N, 2, F) share of the read tokens on which each latent fires."""
        return self._dense("shares", readout)[self.response_index]

    def mean_activations(self, readout: Pooling) -> Tensor:
        """(N, 2, F) mean activation of each latent over the read tokens."""
        return self._dense("means", readout)[self.response_index]

    def subset(self, rows: Sequence[int]) -> "PairFeatures":
        """Some of the pairs."""
        return PairFeatures(
            self.response_index[list(rows)], self.token_counts, self.residuals, self.latents, self.num_latents
        )

    def with_rejected(self, rows: Sequence[int], others: "PairFeatures") -> "PairFeatures":
        """What some pairs prefer, each against the one response of a row of another table."""
        return PairFeatures(
            torch.cat(
                [self.response_index[list(rows), :1], others.response_index + len(self.token_counts)], dim=1
            ),
            torch.cat([self.token_counts, others.token_counts]),
            {layer: torch.cat([self.residuals[layer], read]) for layer, read in others.residuals.items()},
            self.latents + others.latents,
            self.num_latents,
        )

    def _dense(self, what: str, readout: Pooling) -> Tensor:
        out = torch.zeros(len(self.latents), self.num_latents, dtype=torch.half)
        for row, found in enumerate(self.latents):
            out[row, found[f"{readout}.which"].long()] = found[f"{readout}.{what}"]
        return out


def extract_features(
    responses: Sequence[tuple[Item, ...]],
    reader: FeatureExtractor,
    cache: Path,
    report: Callable[[int], None],
) -> PairFeatures:
    """Features of rows of responses, pairs mostly; `report` hears how many responses are done.

    Passes are the same whatever is on the shelf already, and what is there stays, so that a killed run ends
    as an unbroken one.
    """
    exchanges = list(dict.fromkeys(exchange for row in responses for exchange in row))
    items = [_item(exchange) for exchange in exchanges]
    shelf = TensorCache(cache / "features.sqlite")
    found = {name: shelf.get(kind, items) for name, kind in reader.cache_kinds.items()}
    lacking = {name for name, rows in found.items() if any(item not in rows for item in items)}
    done = 0
    encoded = reader.text.encode(exchanges) if lacking else []
    for some in split_into_batches([one.ids for one in encoded], MAX_BATCH_TOKENS):
        if any(items[i] not in found[name] for name in lacking for i in some):
            read = _read([encoded[i] for i in some], [items[i] for i in some], reader, lacking)
            rows = [(name, item, tensors) for name, item, tensors in read if item not in found[name]]
            shelf.put([(reader.cache_kinds[name], item, tensors) for name, item, tensors in rows])
            for name, item, tensors in rows:
                found[name][item] = tensors
        done += len(some)
        report(done)
    report(len(exchanges))
    where = {exchange: i for i, exchange in enumerate(exchanges)}
    place = torch.tensor([[where[exchange] for exchange in row] for row in responses])
    return _table(place, [{name: rows[i] for name, rows in found.items()} for i in items], reader)


def _table(place: Tensor, rows: list[dict[str, dict[str, Tensor]]], reader: FeatureExtractor) -> PairFeatures:
    first = f"residuals.{reader.layers[0]}"
    return PairFeatures(
        response_index=place,
        token_counts=torch.tensor([int(row[first]["tokens"]) for row in rows]),
        residuals={
            layer: torch.stack([row[f"residuals.{layer}"]["pooled"] for row in rows])
            for layer in reader.layers
        },
        latents=[row["latents"] for row in rows],
        num_latents=len(reader.dictionary.bias),
    )


def _read(
    encoded: list[EncodedItem], items: list[str], reader: FeatureExtractor, lacking: set[str]
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """The lacking kinds of row of the responses of one pass."""
    packed = pack([one.ids for one in encoded])
    first, *_ = reader.layers
    layers = [layer for layer in reader.layers if f"residuals.{layer}" in lacking]
    rows = [packed.rows(at, one.response_start, one.response_end + 1) for at, one in enumerate(encoded)]
    needed = {*layers, *([first] if "latents" in lacking else [])}
    states = reader.backbone.residuals(packed, dict.fromkeys(needed, np.concatenate(rows)))
    for one, item, read in zip(encoded, items, rows, strict=True):
        for layer in layers:
            pooled = _readouts(states[layer].at(read)).cpu()
            yield (
                f"residuals.{layer}",
                item,
                {"pooled": pooled, "tokens": torch.tensor(one.response_end - one.response_start)},
            )
        if "latents" in lacking:
            yield "latents", item, _latents(reader.dictionary.encode(states[first].at(read)))


def _readouts(rows: Tensor) -> Tensor:
    """Mean over the response, its last token, the closing token: the order of ReadOut."""
    return torch.stack([rows[:-1].mean(0), rows[-2], rows[-1]])


def _latents(activations: Tensor) -> dict[str, Tensor]:
    shares, means = _readouts((activations > 0).float()).cpu(), _readouts(activations).cpu()
    kept: dict[str, Tensor] = {}
    for at, readout in enumerate(READOUTS):
        which = shares[at].nonzero().squeeze(1)
        kept[f"{readout}.which"] = which.int()
        kept[f"{readout}.shares"] = shares[at, which].half()
        kept[f"{readout}.means"] = means[at, which].half()
    return kept


def _item(exchange: Item) -> str:
    return hashlib.sha256(repr(exchange).encode()).hexdigest()[:32]
