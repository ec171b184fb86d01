"""The steps of a training run: extract → train_sae_on_pairs → select → train_head → calibrate → name."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from app.reward.calibration import Calibration
from app.reward.directions import Dictionary
from app.reward.passages import PassageReading
from app.train.augmentation.pairs import AugmentationShares, AugmentedPairs, augment_pairs, extract_augmented
from app.train.features import FeatureExtractor, PairFeatures, extract_features
from app.train.head.calibration import calibrate_head
from app.train.head.fitting import HeadConfig, HeadFitter, tune_config
from app.train.head.linear import LinearHeadConfig, append_orthogonal
from app.train.head.passage_choice import PASSAGE_FOLDS, ReadingTrial, choose_passages
from app.train.head.training_set import TrainingSet
from app.train.names.tokens import automatic
from app.train.names.tokens.contexts import TokenContexts, collect_contexts
from app.train.reward_function import RewardFunction
from app.train.sae.choice import choose_response_sae
from app.train.sae.response_sae import ResponseSae, ResponseSaeConfig
from app.train.selection import LatentSource, Selection, SelectionData
from app.types import Feature, Pair, Pooling, Progress, SaeInput

NO_AUGMENTATION = AugmentationShares(0.0, 0.0)
NEVER = torch.finfo(torch.float).max
"""Threshold that no activation exceeds."""


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
    """Selected directions with their signs (K,), and the layer and pooling that they are projected from."""

    dictionary: Dictionary
    signs: Tensor
    layer: int
    pooling: Pooling

    def get_residuals(self, features: PairFeatures) -> Tensor:
        """Return the pooled residuals of pairs, (N, 2, D)."""
        return features.pooled_residuals(self.layer, self.pooling)

    def build_basis(self, config: HeadConfig) -> tuple[Tensor, Tensor]:
        """Return the directions that a head is trained on, and their signs.

        A linear head can also use the directions that are orthogonal to the selected ones; they have sign 0.
        """
        directions = self.dictionary.directions
        if not isinstance(config, LinearHeadConfig) or not config.rest_ridge:
            return directions, self.signs
        return append_orthogonal(directions, self.signs)


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A reward function, how it was fitted, and the readings of passages that were tried."""

    reward_function: RewardFunction
    fitter: HeadFitter
    reading_trials: list[ReadingTrial] = field(default_factory=list)

    @property
    def config(self) -> HeadConfig:
        """The hyperparameters after tuning."""
        return self.fitter.config


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
        report_stage(progress, "augmented pairs"),
    )  # fmt: skip
    return ExtractedPairs(pairs, features, augmented)


def train_sae_on_pairs(
    extracted: ExtractedPairs,
    extractor: FeatureExtractor,
    pooling: Pooling,
    config: ResponseSaeConfig,
    k: int,
    seed: int,
    progress: Progress,
) -> ResponseSae:
    """Train SAEs on the responses of the training pairs; return the best for k latents of each sign."""
    data = SelectionData(extracted.features, extracted.groups, k, seed)
    return choose_response_sae(
        data, extractor.layer, pooling, config, report_stage(progress, "SAE of responses")
    )


def select(
    extracted: ExtractedPairs, source: LatentSource, k: int, seed: int
) -> tuple[Selection, DirectionSet]:
    """Select up to k latents of each sign by the difference of their firing rates, and their directions."""
    data = SelectionData(extracted.features, extracted.groups, k, seed)
    selection, dictionary = data.select(source)
    return selection, DirectionSet(dictionary, selection.signs, source.layer, source.pooling)


def train_head(
    extracted: ExtractedPairs,
    directions: DirectionSet,
    config: HeadConfig,
    progress: Progress,
    *,
    tune: bool = True,
    passages: PassageReading | None = None,
    choose_reading: bool = False,
) -> TrainedHead:
    """Train a head on projections on the directions.

    `tune` chooses hyperparameters and `choose_reading` how passages are read, both by cross-validation.
    """
    basis, signs = directions.build_basis(config)
    features, augmented = extracted.features, extracted.augmented
    training_set = TrainingSet.from_vectors(
        directions.get_residuals(features), basis, extracted.groups,
        token_counts=features.lengths(), signs=signs,
    )  # fmt: skip
    if augmented:
        projections = directions.get_residuals(augmented.features) @ basis.T
        training_set = training_set.with_augmented(
            projections, augmented.groups, augmented.features.lengths()
        )
    if tune:
        config = tune_config(training_set, config, report_stage(progress, "cross-validation"))
    fitter = HeadFitter(
        training_set, features, augmented, basis,
        directions.layer, directions.pooling, config, passages,
    )  # fmt: skip
    trials: list[ReadingTrial] = []
    if choose_reading:
        folds = list(fitter.cross_fit(PASSAGE_FOLDS, report_stage(progress, "heads for passages")))
        passages, trials = choose_passages(folds, report_stage(progress, "passages"))
        fitter = replace(fitter, passages=passages)
    reward_function = fitter.fit(progress=lambda done: progress("head", done / fitter.num_steps))
    return TrainedHead(reward_function, fitter, trials)


def read_contexts(
    pairs: list[Pair], extractor: FeatureExtractor, cache: Path, progress: Progress
) -> TokenContexts:
    """Read single tokens with their residuals, which calibration and naming need."""
    return collect_contexts(pairs, extractor, cache, report_stage(progress, "single tokens"))


def calibrate(trained: TrainedHead, contexts: TokenContexts, progress: Progress) -> Calibration:
    """Fit the calibration of a head on pairs that were held out in turn."""
    response_tokens = contexts.residuals[torch.from_numpy(contexts.response_offset >= 0)].cpu()
    return calibrate_head(
        trained.fitter, trained.reward_function, response_tokens, report_stage(progress, "calibration")
    )


def build_dictionary(directions: DirectionSet, reward_function: RewardFunction) -> Dictionary:
    """Return the latents of the model: those selected, and a silent one for merged unsigned directions."""
    dictionary, merged = directions.dictionary, reward_function.directions[len(directions.signs) :]
    return replace(
        dictionary,
        encoder=torch.cat([dictionary.encoder, merged]),
        bias=torch.cat([dictionary.bias, torch.zeros(len(merged))]),
        threshold=torch.cat([dictionary.threshold, torch.full((len(merged),), NEVER)]),
        directions=reward_function.directions,
    )


def name(
    features: tuple[Feature, ...],
    source: LatentSource,
    directions: DirectionSet,
    extracted: ExtractedPairs,
    contexts: TokenContexts,
    extractor: FeatureExtractor,
    neuronpedia: str | None,
) -> tuple[Feature, ...]:
    """Name the features by the tokens on which their latents fire; latents of responses stay unnamed."""
    if source.sae_input is SaeInput.RESPONSES:
        return _measure_agreement(features, directions, extracted.features)
    dictionary = directions.dictionary.to(extractor.backbone.device)
    return automatic.name_features(
        features, dictionary, contexts, extractor.tokenizer, extractor.backbone, neuronpedia
    )


def _measure_agreement(
    features: tuple[Feature, ...], directions: DirectionSet, extracted: PairFeatures
) -> tuple[Feature, ...]:
    """Return features of responses with the agreement of projection and activation on training responses."""
    residuals = directions.get_residuals(extracted).flatten(0, 1)
    fired = (directions.dictionary.encode(residuals) > 0).numpy()
    projections = directions.dictionary.project(residuals).numpy()
    return tuple(
        replace(feature, agreement=automatic.compute_auroc(projections[:, k], fired[:, k]))
        for k, feature in enumerate(features)
    )


def report_stage(progress: Progress, stage: str) -> Callable[[float], None]:
    """Return a callback that reports the share of one stage."""
    return lambda done: progress(stage, done)
