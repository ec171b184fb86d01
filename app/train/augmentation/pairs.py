"""Makes augmented pairs and control pairs, and extracts their features.

A head that has only seen unmodified responses rewards surface features of good responses. So some pairs are
trained on once more with an augmented rejected response: with filler, compliments, a refusal, a grade of its
own and the like. In these pairs only rejected responses have insertions, so a head could decide by them
alone. Control pairs have the same insertions in both responses, and the chosen one stays chosen.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from app.train.augmentation.insertions import Insertion, draw_insertions, insert_all
from app.train.augmentation.rewrites import REWRITES
from app.train.features import FeatureExtractor, PairFeatures, extract_features
from app.types import Item, Pair

AUGMENT_SHARE = 0.5
"""Default share of the pairs that are augmented."""
CONTROL_SHARE = 0.25
"""Default share of all pairs that also become control pairs. They are chosen among the augmented pairs."""
REWRITE_SHARE = 0.25
"""Share of the augmented responses that are rewritten as a whole instead of getting insertions."""
STACKED_SHARE = 0.15
"""Share of the rewritten responses that get insertions, too."""


@dataclass(frozen=True, slots=True)
class AugmentationShares:
    """The shares of all pairs that are augmented, and that also become control pairs."""

    augmented: float = AUGMENT_SHARE
    control: float = CONTROL_SHARE


@dataclass(frozen=True, slots=True)
class AugmentedPair:
    """The index of a pair, and responses that replace its own; None keeps the chosen one."""

    pair_index: int
    chosen: Item | None
    rejected: Item

    @property
    def is_control(self) -> bool:
        """Whether both responses have the same insertions."""
        return self.chosen is not None


@dataclass(frozen=True, slots=True)
class AugmentedPairs:
    """The features of augmented pairs, the index of the pair each was made from, and its prompt group.

    `is_control` tells which of them are control pairs.
    """

    pair_indices: list[int]
    groups: list[str]
    is_control: list[bool]
    features: PairFeatures

    def subset(self, pair_indices: Collection[int]) -> "AugmentedPairs":
        """Return the augmented pairs that were made from some of the pairs."""
        rows = [row for row, index in enumerate(self.pair_indices) if index in pair_indices]
        return AugmentedPairs(
            [self.pair_indices[row] for row in rows],
            [self.groups[row] for row in rows],
            [self.is_control[row] for row in rows],
            self.features.subset(rows),
        )


def augment_pairs(pairs: list[Pair], shares: AugmentationShares) -> list[AugmentedPair]:
    """Return the augmented pairs and control pairs that are made from the pairs.

    The result for a pair depends on that pair alone, so runs with other pairs, shares or seeds find its
    features in the cache.
    """
    augmented: list[AugmentedPair] = []
    for index, pair in enumerate(pairs):
        rng = Random(repr((pair.chosen, pair.rejected)))  # noqa: S311 # not used for security
        draw = rng.random()
        if draw < shares.augmented:
            augmented.extend(_augment_pair(index, pair, rng, with_control=draw < shares.control))
    return augmented


def _augment_pair(index: int, pair: Pair, rng: Random, *, with_control: bool) -> Iterator[AugmentedPair]:
    insertions = draw_insertions(len(pair.rejected), rng)
    yield AugmentedPair(index, None, Item(pair.messages, _augment_rejected(pair, insertions, rng)))
    if with_control:
        chosen, rejected = (
            Item(pair.messages, insert_all(response, insertions)) for response in (pair.chosen, pair.rejected)
        )
        yield AugmentedPair(index, chosen, rejected)


def _augment_rejected(pair: Pair, insertions: Sequence[Insertion], rng: Random) -> str:
    """Return the rejected response with the insertions, rewritten, or rarely both."""
    text = pair.rejected
    if rng.random() < REWRITE_SHARE:
        words = pair.chosen.split() or ["yes"]
        text = rng.choice(REWRITES)(pair.messages[-1].content, text, words, rng)
        insertions = insertions if rng.random() < STACKED_SHARE else ()
    return insert_all(text, insertions)


def extract_augmented(
    pairs: list[Pair],
    features: PairFeatures,
    augmented: Sequence[AugmentedPair],
    extractor: FeatureExtractor,
    cache: Path,
    progress: Callable[[float], None],
) -> AugmentedPairs | None:
    """Extract the features of augmented pairs; None if there are none. `features` are those of the pairs."""
    if not augmented:
        return None
    items = list(dict.fromkeys(item for pair in augmented for item in (pair.chosen, pair.rejected) if item))
    others = extract_features(
        [(item,) for item in items], extractor, cache, lambda done: progress(done / len(items))
    )
    indices = [pair.pair_index for pair in augmented]
    return AugmentedPairs(
        indices,
        [pairs[i].group for i in indices],
        [pair.is_control for pair in augmented],
        features.replace_responses(indices, _index_replacements(augmented, items), others),
    )


def _index_replacements(augmented: Sequence[AugmentedPair], items: Sequence[Item]) -> Tensor:
    """Return for each side of each pair the index of the item that replaces it, or -1, (N, 2)."""
    index: dict[Item | None, int] = {item: i for i, item in enumerate(items)}
    index[None] = -1
    return torch.tensor([[index[pair.chosen], index[pair.rejected]] for pair in augmented])
