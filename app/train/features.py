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
from app.backbone.packing import pack, passes
from app.backbone.tokenization import Text
from app.reward.directions import Dictionary
from app.train.feature_cache import Shelf
from app.types import EncodedItem, Item, Pooling

PASS_TOKENS = 4096
READOUTS = tuple(Pooling)


@dataclass(frozen=True, slots=True)
class Reader:
    """The layers that are read, and the dictionary that reads the first of them."""

    backbone: Backbone
    text: Text
    layers: tuple[int, ...]
    dictionary: Dictionary
    sae_sha256: str

    @property
    def kinds(self) -> dict[str, str]:
        """Digests of all that decides a residual or an activation, by what the table calls them."""
        frozen = (self.backbone.digest, self.text.digest, str(self.text.max_tokens), str(self.backbone.dtype))
        named = {f"residuals.{layer}": str(layer) for layer in self.layers}
        named["latents"] = f"{self.layers[0]}/{self.sae_sha256}"
        return {
            name: hashlib.sha256("/".join((*frozen, *what.split("/"))).encode()).hexdigest()[:24]
            for name, what in named.items()
        }


@dataclass(frozen=True, slots=True)
class Table:
    """Pairs as places in a list of unique responses, and what was read of each of those.

    `place` is (N, 2), chosen first, or (N, M) for other rows of responses; `residuals[layer]` is (U, 3, D)
    over the read-outs; `latents` holds, per response and read-out, which latents fired, on what share of
    tokens and how strongly on average.
    """

    place: Tensor
    tokens: Tensor
    residuals: dict[int, Tensor]
    latents: list[dict[str, Tensor]]
    width: int

    def pooled(self, layer: int, readout: Pooling) -> Tensor:
        """(N, 2, D) pooled residuals."""
        return self.residuals[layer][:, READOUTS.index(readout)][self.place]

    def lengths(self) -> Tensor:
        """(N, 2) response tokens."""
        return self.tokens[self.place]

    def read(self, readout: Pooling) -> Tensor:
        """(N, 2) tokens a read-out pools."""
        lengths = self.lengths()
        return lengths if readout is Pooling.MEAN else torch.ones_like(lengths)

    def firing(self, readout: Pooling) -> Tensor:
        """(N, 2, F) share of the read tokens on which each latent fires."""
        return self._dense("shares", readout)[self.place]

    def activations(self, readout: Pooling) -> Tensor:
        """(N, 2, F) mean activation of each latent over the read tokens."""
        return self._dense("means", readout)[self.place]

    def part(self, rows: Sequence[int]) -> "Table":
        """Some of the pairs."""
        return Table(self.place[list(rows)], self.tokens, self.residuals, self.latents, self.width)

    def against(self, rows: Sequence[int], others: "Table") -> "Table":
        """What some pairs prefer, each against the one response of a row of another table."""
        return Table(
            torch.cat([self.place[list(rows), :1], others.place + len(self.tokens)], dim=1),
            torch.cat([self.tokens, others.tokens]),
            {layer: torch.cat([self.residuals[layer], read]) for layer, read in others.residuals.items()},
            self.latents + others.latents,
            self.width,
        )

    def _dense(self, what: str, readout: Pooling) -> Tensor:
        out = torch.zeros(len(self.latents), self.width, dtype=torch.half)
        for row, found in enumerate(self.latents):
            out[row, found[f"{readout}.which"].long()] = found[f"{readout}.{what}"]
        return out


def table(
    responses: Sequence[tuple[Item, ...]], reader: Reader, cache: Path, report: Callable[[int], None]
) -> Table:
    """Features of rows of responses, pairs mostly; `report` hears how many responses are done.

    Passes are the same whatever is on the shelf already, and what is there stays, so that a killed run ends
    as an unbroken one.
    """
    exchanges = list(dict.fromkeys(exchange for row in responses for exchange in row))
    items = [_item(exchange) for exchange in exchanges]
    shelf = Shelf(cache / "features.sqlite")
    found = {name: shelf.get(kind, items) for name, kind in reader.kinds.items()}
    lacking = {name for name, rows in found.items() if any(item not in rows for item in items)}
    done = 0
    encoded = reader.text.encode(exchanges) if lacking else []
    for some in passes([one.ids for one in encoded], PASS_TOKENS):
        if any(items[i] not in found[name] for name in lacking for i in some):
            read = _read([encoded[i] for i in some], [items[i] for i in some], reader, lacking)
            rows = [(name, item, tensors) for name, item, tensors in read if item not in found[name]]
            shelf.put([(reader.kinds[name], item, tensors) for name, item, tensors in rows])
            for name, item, tensors in rows:
                found[name][item] = tensors
        done += len(some)
        report(done)
    report(len(exchanges))
    where = {exchange: i for i, exchange in enumerate(exchanges)}
    place = torch.tensor([[where[exchange] for exchange in row] for row in responses])
    return _table(place, [{name: rows[i] for name, rows in found.items()} for i in items], reader)


def _table(place: Tensor, rows: list[dict[str, dict[str, Tensor]]], reader: Reader) -> Table:
    first = f"residuals.{reader.layers[0]}"
    return Table(
        place=place,
        tokens=torch.tensor([int(row[first]["tokens"]) for row in rows]),
        residuals={
            layer: torch.stack([row[f"residuals.{layer}"]["pooled"] for row in rows])
            for layer in reader.layers
        },
        latents=[row["latents"] for row in rows],
        width=len(reader.dictionary.bias),
    )


def _read(
    encoded: list[EncodedItem], items: list[str], reader: Reader, lacking: set[str]
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """The lacking kinds of row of the responses of one pass."""
    packed = pack([one.ids for one in encoded])
    first, *_ = reader.layers
    layers = [layer for layer in reader.layers if f"residuals.{layer}" in lacking]
    rows = [packed.rows(at, one.start, one.stop + 1) for at, one in enumerate(encoded)]
    needed = {*layers, *([first] if "latents" in lacking else [])}
    states = reader.backbone.residuals(packed, dict.fromkeys(needed, np.concatenate(rows)))
    for one, item, read in zip(encoded, items, rows, strict=True):
        for layer in layers:
            pooled = _readouts(states[layer].at(read)).cpu()
            yield f"residuals.{layer}", item, {"pooled": pooled, "tokens": torch.tensor(one.stop - one.start)}
        if "latents" in lacking:
            yield "latents", item, _latents(reader.dictionary.activate(states[first].at(read)))


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
