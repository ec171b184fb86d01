"""Trains a reward model in named steps: extract → select → train_head → calibrate → name → evaluate.

`train` runs all of them. `app.train.refit` runs extract, train_head and calibrate on the directions of an
existing bundle.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.data.pairs import match_condition
from app.errors import DataError
from app.evaluate.accuracy import ScoredPairs, evaluate_pairs
from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.head import Head
from app.reward.reward_model import RewardModel, TrainingData
from app.train import assembly
from app.train.augmentation.pairs import AugmentationShares, AugmentedPairs, augment_pairs, extract_augmented
from app.train.features import FeatureExtractor, PairFeatures, extract_features
from app.train.head.baselines import ComparisonData, compare_baselines
from app.train.head.calibration import CALIBRATION_FOLDS, ResponseLengths, calibrate_head
from app.train.head.training import (
    HeadTrainingConfig,
    TrainingSet,
    compute_rewards,
    fit_head,
    tune_config,
)
from app.train.limitations import evaluate_limitations
from app.train.names import labels
from app.train.names.contexts import TokenContexts, collect_contexts
from app.train.selection import Selection, select_latents
from app.types import Feature, Pair, Pooling, Progress

NO_AUGMENTATION = AugmentationShares(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What is trained: the name of the model, its data, and the choices that the method leaves open.

    `max_pairs` 0 trains on all pairs. `slices` are conditions on pairs for which accuracy is also reported.
    `limitations` are the pairs of each file that shows limitations.
    """

    name: str
    pairs: list[Pair]
    data: TrainingData
    test_pairs: list[Pair]
    sae_name: str
    pooling: Pooling = Pooling.MEAN
    k: int = 128
    max_pairs: int = 1000
    augmentation: AugmentationShares = field(default_factory=AugmentationShares)
    slices: tuple[str, ...] = ()
    limitations: Mapping[str, list[Pair]] = field(default_factory=dict)
    head: HeadTrainingConfig = field(default_factory=HeadTrainingConfig)


@dataclass(frozen=True, slots=True)
class ExtractedPairs:
    """Pairs with their features, and the augmented pairs made from them."""

    pairs: list[Pair]
    features: PairFeatures
    augmented: AugmentedPairs | None = None

    @property
    def groups(self) -> list[str]:
        """The prompt group of each pair."""
        return [pair.group for pair in self.pairs]


@dataclass(frozen=True, slots=True)
class DirectionSet:
    """Selected directions, and the layer and pooling whose residuals are projected on them."""

    dictionary: Dictionary
    layer: int
    pooling: Pooling

    def get_residuals(self, features: PairFeatures) -> Tensor:
        """Return the pooled residuals of pairs, (N, 2, D)."""
        return features.pooled_residuals(self.layer, self.pooling)

    def project(self, features: PairFeatures) -> Tensor:
        """Return the projections of pairs, (N, 2, K)."""
        return self.dictionary.project(self.get_residuals(features))


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head, the projections it was trained on, and its hyperparameters after tuning."""

    head: Head
    training_set: TrainingSet
    config: HeadTrainingConfig


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained model, and the results that its report shows, by section."""

    model: RewardModel
    results: dict[str, Any]


def train(
    config: TrainingConfig,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
    neuronpedia: str | None = None,
) -> TrainingResult:
    """Train and evaluate a reward model; nothing is saved but cached features.

    `neuronpedia` is the path of the SAE on neuronpedia.org, for links to its latents.
    """
    started = time.perf_counter()
    pairs = take_training_pairs(config)
    extracted = extract(pairs, extractor, cache, progress, augmentation=config.augmentation)
    extraction_ended = time.perf_counter()
    selection, directions = select(extracted, extractor, config.pooling, config.k, config.head.seed)
    trained = train_head(extracted, directions, config.head, progress)
    contexts = read_contexts(pairs, extractor, cache, progress)
    calibration = calibrate(trained, extracted, directions, contexts, progress)
    fitting_ended = time.perf_counter()
    features = name(assembly.describe_features(selection), directions, contexts, extractor, neuronpedia)
    data = replace(config.data, pairs=len(pairs))
    card = assembly.build_model_card(
        config.name, data, extractor, trained.head, pooling=config.pooling, sae_name=config.sae_name,
        config=trained.config, temperature=calibration.temperature,
    )  # fmt: skip
    model = RewardModel(card, directions.dictionary, trained.head, calibration, features, ())
    seconds = (extraction_ended - started, fitting_ended - extraction_ended)
    results: dict[str, Any] = {
        "training": _summarise_training(extracted, trained, *seconds),
        "selection": {"false_discovery": selection.false_discovery, "overlap": selection.overlap},
        "names": assembly.summarise_names(features),
    }
    if config.test_pairs:
        results |= evaluate(config, model, extracted, trained, extractor, cache, progress)
    results |= evaluate_limitations(model, config.limitations, pairs, extractor, cache, progress)
    model = replace(model, card=replace(card, metrics=assembly.select_metrics(results)))
    return TrainingResult(assembly.add_probes(model, extractor), results)


def take_training_pairs(config: TrainingConfig) -> list[Pair]:
    """Return the first `max_pairs` pairs; they must have enough prompts for cross-validation."""
    pairs = config.pairs[: config.max_pairs] if config.max_pairs else config.pairs
    if len({pair.group for pair in pairs}) < CALIBRATION_FOLDS:
        raise DataError(
            f"{config.data.name}: {len(pairs)} pairs of fewer than {CALIBRATION_FOLDS} prompts; "
            "cross-validation needs more"
        )
    return pairs


def extract(
    pairs: list[Pair],
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
    *,
    augmentation: AugmentationShares = NO_AUGMENTATION,
    stage: str = "training pairs",
) -> ExtractedPairs:
    """Extract features of pairs, and of augmented and control pairs; `stage` names the progress."""
    responses = [pair.items for pair in pairs]
    count = max(len({item for row in responses for item in row}), 1)
    features = extract_features(responses, extractor, cache, lambda done: progress(stage, done / count))
    augmented = extract_augmented(
        pairs, features, augment_pairs(pairs, augmentation), extractor, cache,
        _report_stage(progress, "augmented pairs"),
    )  # fmt: skip
    return ExtractedPairs(pairs, features, augmented)


def select(
    extracted: ExtractedPairs, extractor: FeatureExtractor, pooling: Pooling, k: int, seed: int
) -> tuple[Selection, DirectionSet]:
    """Select k latents of each sign by the difference of their firing rates, and their directions."""
    firing_rates = extracted.features.firing_rates(pooling)
    selection = select_latents(firing_rates, extracted.groups, k, seed=seed)
    dictionary = extractor.dictionary.to(torch.device("cpu")).select(selection.latents).orthogonalize()
    return selection, DirectionSet(dictionary, extractor.layer, pooling)


def train_head(
    extracted: ExtractedPairs,
    directions: DirectionSet,
    config: HeadTrainingConfig,
    progress: Progress,
    *,
    tune: bool = True,
) -> TrainedHead:
    """Train a head on projections on the directions; `tune` chooses hyperparameters by cross-validation."""
    training_set = TrainingSet.from_vectors(
        directions.get_residuals(extracted.features), directions.dictionary.directions, extracted.groups
    )
    if extracted.augmented:
        projections = directions.project(extracted.augmented.features)
        training_set = training_set.with_augmented(projections, extracted.augmented.groups)
    if tune:
        config = tune_config(training_set, config, _report_stage(progress, "cross-validation"))
    epochs = max(config.epochs, 1)
    head = fit_head(training_set, config, lambda epoch: progress("head", epoch / epochs))
    return TrainedHead(head, training_set, config)


def read_contexts(
    pairs: list[Pair], extractor: FeatureExtractor, cache: Path, progress: Progress
) -> TokenContexts:
    """Read single tokens with their residuals, which calibration and naming need."""
    return collect_contexts(pairs, extractor, cache, _report_stage(progress, "single tokens"))


def calibrate(
    trained: TrainedHead,
    extracted: ExtractedPairs,
    directions: DirectionSet,
    contexts: TokenContexts,
    progress: Progress,
) -> Calibration:
    """Fit the calibration of a head on pairs that were held out in turn."""
    features = extracted.features
    response_tokens = contexts.residuals[torch.from_numpy(contexts.response_offset >= 0)].cpu()
    return calibrate_head(
        trained.head,
        trained.training_set,
        ResponseLengths(features.lengths(), features.pooled_lengths(directions.pooling)),
        directions.dictionary.project(response_tokens),
        trained.config,
        _report_stage(progress, "calibration"),
    )


def name(
    features: tuple[Feature, ...],
    directions: DirectionSet,
    contexts: TokenContexts,
    extractor: FeatureExtractor,
    neuronpedia: str | None,
) -> tuple[Feature, ...]:
    """Name the features by the tokens on which their latents fire."""
    dictionary = directions.dictionary.to(extractor.backbone.device)
    return labels.name_features(
        features, dictionary, contexts, extractor.tokenizer, extractor.backbone, neuronpedia
    )


def evaluate(
    config: TrainingConfig,
    model: RewardModel,
    extracted: ExtractedPairs,
    trained: TrainedHead,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the model and the baselines on the test pairs; baselines are trained on the same pairs."""
    test = extract(config.test_pairs, extractor, cache, progress, stage="test pairs")
    data = ComparisonData(
        extracted.pairs, extracted.features, test.pairs, test.features, extractor.dictionary, extractor.layer,
        config.pooling, config.k, trained.config, extracted.augmented,
    )  # fmt: skip
    projections = data.residuals[1] @ model.dictionary.directions.cpu().T
    scored = ScoredPairs(compute_rewards(model.head, projections), test.features.lengths(), test.groups)
    slices = {condition: match_condition(test.pairs, condition) for condition in config.slices}
    return {
        "test": evaluate_pairs(scored, model.calibration.temperature, slices),
        "baselines": compare_baselines(data, scored, progress),
    }


def _summarise_training(
    extracted: ExtractedPairs, trained: TrainedHead, extraction_s: float, fitting_s: float
) -> dict[str, Any]:
    is_control = extracted.augmented.is_control if extracted.augmented else []
    return {
        "pairs": len(extracted.pairs),
        "drills": len(is_control) - sum(is_control),
        "controls": sum(is_control),
        "prompts": len(set(trained.training_set.groups)),
        "seconds_extracting": round(extraction_s, 1),
        "seconds_fitting": round(fitting_s, 1),
        "plan": asdict(trained.config),
    }


def _report_stage(progress: Progress, stage: str) -> Callable[[float], None]:
    """Return a callback that reports the share of one stage."""
    return lambda done: progress(stage, done)
