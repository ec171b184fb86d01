"""All responses of pairs with what they express, from which evidence and tests of names are taken.

They are kept in the cache folder. The texts are those of the pairs, so they never enter a bundle.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from app.data.pairs import hash_to_unit_interval
from app.errors import DataError
from app.reward.reward_model import RewardModel
from app.scores import DoubleArray
from app.train.feature_cache import write_atomically
from app.train.features import PairFeatures
from app.train.reward_function import RewardFunction
from app.train.selection import LatentSource
from app.types import FORBID_EXTRA, Pair

TEST_SHARE = 0.5
"""Share of the prompts that names are tested on, if the tests have no pairs of their own."""
MAX_PROMPT_CHARACTERS = 300
MAX_RESPONSE_CHARACTERS = 900
LENGTH_NOISE = 0.2
"""Random part of the log ratio of lengths by which matched responses are chosen, so that they vary."""
STALE = "this evidence is of other features of {name}; run `sparserm features evidence {name} PAIRS` again"
TABLE_FILE = "responses.safetensors"
TEXTS_FILE = "responses.json"
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ResponseText:
    """A response of pair number `pair`, with the end of its prompt; `group` is the prompt's."""

    __pydantic_config__ = FORBID_EXTRA
    pair: int
    preferred: bool
    group: str
    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class ResponseTable:
    """The responses of pairs, chosen and rejected in turn, and what they express.

    `lengths` (M,) are in tokens; `projections` (M, K) are standardised; `fired` (M, K) says whether latents
    fire. `is_tested` (M,) marks the responses on which names are tested, which are to other prompts.
    """

    texts: list[ResponseText]
    lengths: NDArray[np.int64]
    projections: DoubleArray
    fired: Mask
    is_tested: Mask
    features_sha256: str = ""

    @classmethod
    def from_features(
        cls, model: RewardModel, pairs: Sequence[Pair], features: PairFeatures, *, num_named: int | None
    ) -> "ResponseTable":
        """Return the responses of pairs; those from pair `num_named` on are for tests, by default half."""
        card = model.card
        source = LatentSource(model.dictionary, card.sae_input, card.layer, card.readout)
        projections = RewardFunction.from_model(model).project(features).flatten(0, 1)
        is_tested = [
            hash_to_unit_interval(f"names/{pair.group}") < TEST_SHARE if num_named is None else i >= num_named
            for i, pair in enumerate(pairs)
        ]
        return cls(
            [text for i, pair in enumerate(pairs) for text in _show_pair(i, pair)],
            features.lengths().flatten().numpy(),
            projections.double().numpy(),
            (source.activations(features).flatten(0, 1) > 0).numpy(),
            np.repeat(is_tested, 2),
            compute_features_digest(model),
        )

    def save(self, folder: Path) -> None:
        """Write the table into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "lengths": self.lengths, "projections": self.projections.astype(np.float32), "fired": self.fired,
            "is_tested": self.is_tested,
        }  # fmt: skip
        save_file(
            {name: torch.from_numpy(array) for name, array in tensors.items()},
            folder / TABLE_FILE,
            {"features_sha256": self.features_sha256},
        )
        write_atomically(folder / TEXTS_FILE, TypeAdapter(list[ResponseText]).dump_json(self.texts).decode())

    @classmethod
    def load(cls, folder: Path, model: RewardModel) -> "ResponseTable":
        """Read the table of a folder; raise DataError if it has none, or one of other features."""
        try:
            tensors = {name: tensor.numpy() for name, tensor in load_file(folder / TABLE_FILE).items()}
            with safe_open(folder / TABLE_FILE, "numpy") as file:
                digest = (file.metadata() or {}).get("features_sha256", "")
            texts = TypeAdapter(list[ResponseText]).validate_json((folder / TEXTS_FILE).read_bytes())
        except (OSError, SafetensorError, ValidationError) as error:
            raise DataError(
                f"no evidence in {folder}; run `sparserm features evidence {folder.name} PAIRS` first"
            ) from error
        if digest != compute_features_digest(model):
            raise DataError(STALE.format(name=model.card.name))
        return cls(
            texts, tensors["lengths"], tensors["projections"].astype(np.float64), tensors["fired"],
            tensors["is_tested"], digest,
        )  # fmt: skip

    def take_one_a_prompt(self, order: NDArray[np.int64], count: int) -> list[int]:
        """Return the first `count` responses of an order, at most one a prompt."""
        taken: dict[str, int] = {}
        for index in order.tolist():
            if len(taken) == count:
                break
            taken.setdefault(self.texts[index].group, index)
        return list(taken.values())

    def match_absent(
        self,
        matched: Sequence[int],
        values: DoubleArray,
        fired: Mask,
        mask: Mask,
        excluded: Collection[str] = (),
    ) -> list[int]:
        """Return for each of `matched` a response of similar length, to another prompt, without the meaning.

        It does not fire, and its value is below the median of `mask`. `values` (M,) say how much the
        responses express the meaning, `fired` (M,) whether they do at all. `excluded` prompts are not used.
        """
        candidates = np.flatnonzero(~fired & mask & (values < np.median(values[mask])))
        used = {*excluded, *(self.texts[i].group for i in matched)}
        chosen: list[int] = []
        for index in matched:
            noise = np.random.default_rng(index).random(len(candidates)) * LENGTH_NOISE
            distance = np.abs(np.log(self.lengths[candidates] / self.lengths[index])) + noise
            order = (int(candidates[i]) for i in np.argsort(distance))
            absent = next((i for i in order if self.texts[i].group not in used), None)
            if absent is not None:
                chosen.append(absent)
                used.add(self.texts[absent].group)
        return chosen


def compute_features_digest(model: RewardModel) -> str:
    """Return a digest of a model's features: their numbers and directions, not the head's weights."""
    directions = model.dictionary.directions.cpu().contiguous().numpy()
    latents = [feature.latent for feature in model.features]
    return hashlib.sha256(repr(latents).encode() + directions.tobytes()).hexdigest()


def sort_firing(values: DoubleArray, fired: Mask, mask: Mask) -> NDArray[np.int64]:
    """Return the responses in `mask` that fire, those with the highest values first."""
    firing = np.flatnonzero(fired & mask)
    order: NDArray[np.int64] = firing[np.argsort(-values[firing], kind="stable")]
    return order


def _show_pair(row: int, pair: Pair) -> list[ResponseText]:
    prompt = pair.messages[-1].content[-MAX_PROMPT_CHARACTERS:]
    return [
        ResponseText(row, preferred, pair.group, prompt, _cut(response))
        for preferred, response in ((True, pair.chosen), (False, pair.rejected))
    ]


def _cut(response: str) -> str:
    """Return the beginning of a response; the end says how long it is if it is cut."""
    if len(response) <= MAX_RESPONSE_CHARACTERS:
        return response
    return f"{response[:MAX_RESPONSE_CHARACTERS]} … [{len(response)} characters in all]"
