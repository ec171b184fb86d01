"""Makes the descriptive parts of a bundle around a trained head: card, features and probes."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from app.errors import NonFiniteScore
from app.reward.engine import Engine
from app.reward.reward_model import ModelCard, Probe, RewardModel, TrainingData
from app.train.features import FeatureExtractor
from app.train.head.network import NetworkHeadConfig
from app.train.limitations import summarise_limitations
from app.train.selection import LatentSource, Selection
from app.train.steps import TrainedHead
from app.types import Explain, Feature, Item, Message, ScoreJob, ScoreOptions

PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Can people breathe under water without equipment?", "No. Human lungs cannot take oxygen from water."),
    ("How many legs does a spider have?", "Nobody knows; some say six, some say a hundred."),
    ("Write one sentence about autumn.", "Autumn turns the hills copper and the mornings quiet."),
)
"""Prompts and responses whose rewards are stored in the bundle and recomputed when it is loaded."""
LINEAR_LOSS = "bradley-terry"
"""Loss of linear heads, as the card calls it."""
REMAINDER_LABEL = "all other directions"
"""Label of the direction that merges everything orthogonal to the selected directions."""
TEST_METRICS = ("accuracy", "ci_low", "ci_high", "n", "ece")
VERSIONED_PACKAGES = ("sparserm", "torch", "transformers", "sae-lens")


def build_model_card(
    name: str,
    data: TrainingData,
    extractor: FeatureExtractor,
    trained: TrainedHead,
    *,
    source: LatentSource,
    sae_name: str,
    sae_sha256: str,
    temperature: float,
    domain: str = "",
) -> ModelCard:
    """Return the card of a new model; its metrics are filled in by the evaluation."""
    config, head = trained.config, trained.reward_function.head
    return ModelCard(
        name=name,
        task=name,
        backbone=extractor.backbone.name,
        backbone_digest=extractor.backbone.digest,
        template_sha256=extractor.tokenizer.template_sha256,
        layer=extractor.layer,
        readout=source.pooling,
        directions=len(head.center),
        heads=config.heads,
        hidden=head.w1.shape[1],
        loss=config.loss if isinstance(config, NetworkHeadConfig) else LINEAR_LOSS,
        sae=sae_name,
        sae_sha256=sae_sha256,
        sae_length=source.dictionary.input_norm,
        data=(data,),
        use=describe_permitted_use(data, "see the license of the data"),
        temperature=temperature,
        metrics={},
        trained_parameters=head.num_parameters,
        versions={package: version(package) for package in VERSIONED_PACKAGES},
        passages=trained.reward_function.passages,
        sae_input=source.sae_input,
        head_kind=head.kind,
        domain=domain,
    )


def select_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a card from the sections of a report that the model has."""
    test = results.get("test")
    metrics = {metric: test[metric] for metric in TEST_METRICS} if test else {}
    return metrics | summarise_limitations(results)


def describe_permitted_use(data: TrainingData, otherwise: str) -> str:
    """Return "research use only" if the license of the data is non-commercial, else `otherwise`."""
    return "research use only" if "NC" in data.license else otherwise


def describe_features(selection: Selection) -> tuple[Feature, ...]:
    """Return a feature for each selected latent, not named yet."""
    evidence = (selection.latents, selection.signs, selection.difference, selection.stability)
    return tuple(
        Feature(latent, int(sign), difference=round(difference, 5), stability=round(stability, 3))
        for latent, sign, difference, stability in zip(*(t.tolist() for t in evidence), strict=True)
    )


def describe_remainder(latent: int) -> Feature:
    """Return the feature of the merged directions that were not selected; `latent` is an unused number."""
    return Feature(latent, 0, label=REMAINDER_LABEL)


def summarise_names(features: tuple[Feature, ...]) -> dict[str, Any]:
    """Return how many features have a name, and how reliable their names and projections are."""
    scores = [feature.label_score for feature in features if feature.label_score is not None]
    return {
        "named": len(scores),
        "directions": len(features),
        "median_score": float(torch.tensor(scores).median()) if scores else None,
        "projection_tells_firing": sum(feature.projection_predicts_firing for feature in features),
    }


def add_probes(model: RewardModel, extractor: FeatureExtractor) -> RewardModel:
    """Return the model with a few items and the rewards it gives them, by which a bundle is verified."""
    items = [Item((Message("user", prompt),), response) for prompt, response in PROBES]
    engine = Engine(extractor.backbone, extractor.tokenizer, {model.card.name: model})
    options = ScoreOptions((model.card.name,), Explain.NONE)
    jobs = [ScoreJob(encoded, options) for encoded in engine.encode(items)]
    probes = []
    for item, result in zip(items, engine.score(jobs), strict=True):
        if isinstance(result, NonFiniteScore):
            raise result
        probes.append(Probe(item, result.scores[0].reward))
    return replace(model, probes=tuple(probes))
