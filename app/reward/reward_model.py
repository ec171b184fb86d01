"""A reward model in memory: its card, the modules that score, its features, probes and profiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.head import Head
from app.reward.passages import PassageReading
from app.scores import DoubleArray
from app.types import FORBID_EXTRA, Feature, HeadKind, Item, Pooling, Profile, SaeInput

SCHEMA_VERSION = 5
"""Version of the bundle format that this code writes."""
READABLE_SCHEMAS = (2, 3, 4, 5)
"""Versions of the bundle format that this code reads.

Version 3 added `passages`, version 4 `sae_input` and `head_kind`, version 5 concepts.json and `domain`.
"""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Name, digest, size and license of one training data file."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    sha256: str
    pairs: int
    license: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Content of manifest.json: what a reward model is, was trained on and achieves.

    Field names are the keys of the manifest and of the API; `readout` is the pooling. A model with `passages`
    also reads the sentences of the response. `domain` says in words which texts it was trained on.
    """

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
    passages: PassageReading | None = None
    sae_input: SaeInput = SaeInput.TOKENS
    head_kind: HeadKind = HeadKind.NETWORK
    domain: str = ""
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Probe:
    """An item and the reward it had when the bundle was made; probes.json calls the item `exchange`."""

    __pydantic_config__ = FORBID_EXTRA
    item: Annotated[Item, Field(alias="exchange")]
    reward: float


@dataclass(frozen=True, slots=True)
class Concept:
    """Features with related meanings and the same effect: `sign` is +1 if the concept raises rewards.

    `name` is a verb phrase ("declines"). `score` is its balanced accuracy in a blind test of `items` texts;
    None if it was not tested, as for the concepts that group features by automatic labels.
    """

    __pydantic_config__ = FORBID_EXTRA
    name: str
    latents: tuple[int, ...]
    sign: int
    definition: str = ""
    score: float | None = None
    items: int = 0


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A loaded bundle.

    Without `concepts`, features with the same label form one. `index_by_latent` maps latent numbers to
    indices of selected directions, `concept_indices` the names of concepts to those of their features;
    `concept_membership` (K, C) is 1 where a direction belongs to a concept.
    """

    card: ModelCard
    dictionary: Dictionary
    head: Head
    calibration: Calibration
    features: tuple[Feature, ...]
    probes: tuple[Probe, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    concepts: tuple[Concept, ...] = ()
    index_by_latent: dict[int, int] = field(init=False)
    concept_indices: dict[str, list[int]] = field(init=False)
    concept_membership: DoubleArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index_by_latent = {feature.latent: index for index, feature in enumerate(self.features)}
        concepts = self.concepts or _group_by_label(self.features)
        indices = {
            concept.name: [index_by_latent[latent] for latent in concept.latents] for concept in concepts
        }
        object.__setattr__(self, "concepts", concepts)
        object.__setattr__(self, "index_by_latent", index_by_latent)
        membership = np.zeros((len(self.features), len(concepts)))
        for column, members in enumerate(indices.values()):
            membership[members, column] = 1.0
        object.__setattr__(self, "concept_indices", indices)
        object.__setattr__(self, "concept_membership", membership)

    @property
    def projection_deciles(self) -> Tensor:
        """Nine deciles of each projection over responses to held-out training prompts, (K, 9)."""
        return self.head.center[:, None] + self.head.scale[:, None] * self.calibration.standardised_deciles

    def find_directions(self, key: str) -> list[int]:
        """Return the indices of the directions of a latent number or a concept; empty if unknown."""
        if key.isdecimal() and int(key) in self.index_by_latent:
            return [self.index_by_latent[int(key)]]
        return self.concept_indices.get(key, [])

    def to(self, device: torch.device) -> "RewardModel":
        """Return the model with its tensors on a device; the model itself if they already are."""
        if self.dictionary.directions.device == device:
            return self
        return replace(
            self,
            dictionary=self.dictionary.to(device),
            head=self.head.to(device),
            calibration=self.calibration.to(device),
        )


def check_concepts(concepts: Sequence[Concept], features: Sequence[Feature]) -> None:
    """Raise ValueError if names repeat, a feature is unknown or in two concepts, or effects are mixed."""
    signs = {feature.latent: feature.sign for feature in features}
    names: set[str] = set()
    used: dict[int, str] = {}
    for concept in concepts:
        if not concept.name or concept.name in names or concept.name.isdecimal():
            raise ValueError(f"a concept needs a name of its own that is not a number, not {concept.name!r}")
        names.add(concept.name)
        if not concept.latents or len(set(concept.latents)) < len(concept.latents):
            raise ValueError(f"{concept.name!r} has no features, or one of them twice")
        for latent in concept.latents:
            if latent not in signs:
                raise ValueError(f"{concept.name!r}: the model has no feature {latent}")
            if latent in used:
                raise ValueError(f"feature {latent} is in {used[latent]!r} and in {concept.name!r}")
            if signs[latent] != concept.sign:
                raise ValueError(
                    f"{concept.name!r} has sign {concept.sign}, but its feature {latent} {signs[latent]}; "
                    "features that raise and that lower rewards belong in different concepts"
                )
            used[latent] = concept.name


def list_tested(concepts: Sequence[Concept]) -> list[Concept]:
    """Return the concepts whose names passed a blind test."""
    return [concept for concept in concepts if concept.items]


def _group_by_label(features: tuple[Feature, ...]) -> tuple[Concept, ...]:
    """Return one concept for each label that features have; features with sign 0 belong to none."""
    latents: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.label and feature.sign:
            latents.setdefault(feature.label, []).append(feature)
    return tuple(
        Concept(label, tuple(f.latent for f in group), sign=_common_sign(group))
        for label, group in latents.items()
    )


def _common_sign(features: list[Feature]) -> int:
    """Return the sign of features that all have the same one, else 0."""
    signs = {feature.sign for feature in features}
    return signs.pop() if len(signs) == 1 else 0
