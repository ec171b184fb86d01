"""A reward model in memory: its card, the modules that score, its features, probes and profiles."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.head import Head
from app.reward.passages import PassageReading
from app.types import FORBID_EXTRA, Feature, HeadKind, Item, Pooling, Profile, SaeInput

SCHEMA_VERSION = 4
"""Version of the bundle format that this code writes."""
READABLE_SCHEMAS = (2, 3, 4)
"""Versions of the bundle format that this code reads.

Version 3 added `passages`, version 4 `sae_input` and `head_kind`.
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
    also reads the sentences of the response.
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
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Probe:
    """An item and the reward it had when the bundle was made; probes.json calls the item `exchange`."""

    __pydantic_config__ = FORBID_EXTRA
    item: Annotated[Item, Field(alias="exchange")]
    reward: float


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A loaded bundle.

    `index_by_latent` maps latent numbers and `clusters` maps labels to indices of selected directions.
    """

    card: ModelCard
    dictionary: Dictionary
    head: Head
    calibration: Calibration
    features: tuple[Feature, ...]
    probes: tuple[Probe, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    index_by_latent: dict[int, int] = field(init=False)
    clusters: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        clusters: dict[str, list[int]] = {}
        for index, feature in enumerate(self.features):
            if feature.label:
                clusters.setdefault(feature.label, []).append(index)
        index_by_latent = {feature.latent: index for index, feature in enumerate(self.features)}
        object.__setattr__(self, "index_by_latent", index_by_latent)
        object.__setattr__(self, "clusters", clusters)

    @property
    def projection_deciles(self) -> Tensor:
        """Nine deciles of each projection over responses to held-out training prompts, (K, 9)."""
        return self.head.center[:, None] + self.head.scale[:, None] * self.calibration.standardised_deciles

    def find_directions(self, key: str) -> list[int]:
        """Return the indices of the directions of a latent number or a cluster name; empty if unknown."""
        if key.isdecimal() and int(key) in self.index_by_latent:
            return [self.index_by_latent[int(key)]]
        return self.clusters.get(key, [])

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
