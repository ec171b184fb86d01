"""Trains a reward model in the steps of `app.train.steps`, and evaluates it.

`app.train.refit` runs some of the steps on the directions of an existing bundle.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.data.pairs import match_condition
from app.errors import DataError
from app.evaluate.accuracy import ScoredPairs, evaluate_pairs
from app.evaluate.accuracy_run import apply_length_control, evaluate_length
from app.reward.reward_model import RewardModel, TrainingData
from app.train import assembly, steps
from app.train.augmentation.pairs import AugmentationShares
from app.train.features import FeatureExtractor
from app.train.head.baselines import ComparisonData, compare_baselines
from app.train.head.calibration import CALIBRATION_FOLDS
from app.train.head.fitting import HeadConfig
from app.train.head.linear import LinearHeadConfig
from app.train.limitations import evaluate_attack_sample, evaluate_limitations
from app.train.sae.response_sae import ResponseSaeConfig
from app.train.selection import LatentSource
from app.train.steps import ExtractedPairs, TrainedHead
from app.types import Pair, Pooling, Progress, SaeInput


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What is trained: the name of the model, its data, and the choices that the method leaves open.

    `max_pairs` 0 trains on all pairs. Features are latents of an SAE of tokens, which the extractor has, or
    of an SAE of responses, which is trained on the pairs. `choose_passages` lets cross-validation choose
    whether passages are read beside the mean over the response. `slices` are conditions on pairs for which
    accuracy is also reported. `domain` says in words which texts the pairs are. `limitations` are the pairs
    of each file that shows limitations.
    """

    name: str
    pairs: list[Pair]
    data: TrainingData
    test_pairs: list[Pair]
    sae_name: str
    pooling: Pooling = Pooling.MEAN
    k: int = 24
    max_pairs: int = 1000
    sae_input: SaeInput = SaeInput.RESPONSES
    response_sae: ResponseSaeConfig = field(default_factory=ResponseSaeConfig)
    choose_passages: bool = True
    augmentation: AugmentationShares = field(default_factory=AugmentationShares)
    slices: tuple[str, ...] = ()
    limitations: Mapping[str, list[Pair]] = field(default_factory=dict)
    head: HeadConfig = field(default_factory=LinearHeadConfig)
    domain: str = ""


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
    extracted = steps.extract(pairs, extractor, cache, progress, augmentation=config.augmentation)
    extraction_ended = time.perf_counter()
    model, trained, source, results = _fit(config, extracted, extractor, cache, progress, neuronpedia)
    seconds = (extraction_ended - started, time.perf_counter() - extraction_ended)
    results["training"] = _summarise_training(extracted, trained, *seconds)
    if config.test_pairs:
        results |= evaluate(config, model, source, extracted, trained, extractor, cache, progress)
        results |= evaluate_attack_sample(model, config.test_pairs, extractor, cache, progress)
    results |= evaluate_limitations(model, config.limitations, pairs, extractor, cache, progress)
    model = replace(model, card=replace(model.card, metrics=assembly.select_metrics(results)))
    return TrainingResult(assembly.add_probes(model, extractor), results)


def _fit(
    config: TrainingConfig,
    extracted: ExtractedPairs,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
    neuronpedia: str | None,
) -> tuple[RewardModel, TrainedHead, LatentSource, dict[str, Any]]:
    """Return the model without probes, its head and latents, and the sections of the report about them."""
    source, sae_results = build_latent_source(config, extracted, extractor, progress)
    selection, directions = steps.select(extracted, source, config.k, config.head.seed)
    trained = steps.train_head(
        extracted,
        directions,
        config.head,
        progress,
        choose_reading=config.choose_passages and extractor.passages,
    )
    contexts = steps.read_contexts(extracted.pairs, extractor, cache, progress)
    calibration = steps.calibrate(trained, contexts, progress)
    dictionary = steps.build_dictionary(directions, trained.reward_function)
    features = steps.name(
        assembly.describe_features(selection), source, directions, extracted, contexts, extractor, neuronpedia
    )
    if len(dictionary.bias) > len(features):
        features += (assembly.describe_remainder(len(source.dictionary.bias)),)
    card = assembly.build_model_card(
        config.name, replace(config.data, pairs=len(extracted.pairs)), extractor, trained,
        sae_name=config.sae_name, source=source, sae_sha256=compute_sae_digest(config, source, extractor),
        temperature=calibration.temperature, domain=config.domain,
    )  # fmt: skip
    model = RewardModel(card, dictionary, trained.reward_function.head, calibration, features, ())
    results = {
        "selection": {"false_discovery": selection.false_discovery, "overlap": selection.overlap},
        "names": assembly.summarise_names(features),
        **sae_results,
    }
    return model, trained, source, results


def take_training_pairs(config: TrainingConfig) -> list[Pair]:
    """Return the first `max_pairs` pairs; they must have enough prompts for cross-validation."""
    pairs = config.pairs[: config.max_pairs] if config.max_pairs else config.pairs
    if len({pair.group for pair in pairs}) < CALIBRATION_FOLDS:
        raise DataError(
            f"{config.data.name}: {len(pairs)} pairs of fewer than {CALIBRATION_FOLDS} prompts; "
            "cross-validation needs more"
        )
    return pairs


def build_latent_source(
    config: TrainingConfig, extracted: ExtractedPairs, extractor: FeatureExtractor, progress: Progress
) -> tuple[LatentSource, dict[str, Any]]:
    """Return the latents to select from, and the section of the report about their SAE if it is trained."""
    if config.sae_input is SaeInput.TOKENS:
        if extractor.dictionary is None:
            raise DataError(f"{config.name}: features of tokens need an SAE of tokens")
        return LatentSource(extractor.dictionary, SaeInput.TOKENS, extractor.layer, config.pooling), {}
    sae = steps.train_sae_on_pairs(
        extracted, extractor, config.pooling, config.response_sae, config.k, config.head.seed, progress
    )
    section = asdict(config.response_sae) | {
        "explained_variance": sae.explained_variance, "mean_active": sae.mean_active, "dead": sae.dead,
    }  # fmt: skip
    source = LatentSource(sae.dictionary, SaeInput.RESPONSES, extractor.layer, config.pooling)
    return source, {"response_sae": section}


def compute_sae_digest(config: TrainingConfig, source: LatentSource, extractor: FeatureExtractor) -> str:
    """Return the SHA-256 of the SAE: of its file if it has one, else of its tensors."""
    if config.sae_input is SaeInput.TOKENS:
        return extractor.sae_sha256
    dictionary = source.dictionary
    tensors = (dictionary.encoder, dictionary.bias, dictionary.threshold, dictionary.directions)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def evaluate(
    config: TrainingConfig,
    model: RewardModel,
    source: LatentSource,
    extracted: ExtractedPairs,
    trained: TrainedHead,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the model and the baselines on the test pairs; baselines are trained on the same pairs."""
    test = steps.extract(config.test_pairs, extractor, cache, progress, stage="test pairs")
    data = ComparisonData(
        extracted.pairs, extracted.features, test.pairs, test.features, source, extractor.layer,
        config.pooling, config.k, trained.config, extracted.augmented,
    )  # fmt: skip
    rewards = trained.reward_function.compute_rewards(test.features)
    scored = ScoredPairs(rewards, test.features.lengths(), test.groups)
    slices = {condition: match_condition(test.pairs, condition) for condition in config.slices}
    return {
        "test": evaluate_pairs(scored, model.calibration.temperature, slices)
        | {"length_controlled": evaluate_length(apply_length_control(scored, model))},
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
        "prompts": len(set(extracted.groups)),
        "seconds_extracting": round(extraction_s, 1),
        "seconds_fitting": round(fitting_s, 1),
        "plan": asdict(trained.config),
        "reading": asdict(trained.fitter.passages) if trained.fitter.passages else None,
        "readings": [
            {
                "reading": asdict(trial.reading) if trial.reading else None,
                "accuracy": trial.accuracy,
                "overtaken": trial.overtaken,
            }
            for trial in trained.reading_trials
        ],
    }
