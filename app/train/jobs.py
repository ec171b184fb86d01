"""Trains a reward model from files and settings, and writes its bundle and report: `sparserm train`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.backbone.model_sources import compute_sha256
from app.data.pairs import BadRowHandler, read_pairs, source_sha256
from app.errors import SourceError
from app.evaluate import report as reports
from app.evaluate.suites import limitation_pairs
from app.reward import bundle, loading
from app.reward.reward_model import RewardModel, TrainingData
from app.settings import Settings
from app.train import pipeline
from app.train.augmentation.pairs import AugmentationShares
from app.train.features import FeatureExtractor
from app.train.head.fitting import HeadConfig
from app.train.head.linear import LinearHeadConfig
from app.train.head.network import NetworkHeadConfig
from app.train.recipes import Recipe, find_recipe
from app.train.sae import jobs as sae_jobs
from app.train.sae import training as sae_training
from app.train.sae.import_pretrained import import_pretrained_sae
from app.train.sae.response_sae import ResponseSaeConfig
from app.types import HeadKind, Pooling, Progress, SaeInput


@dataclass(frozen=True, slots=True)
class BackboneLayer:
    """A backbone and the layer that is read; the SAE is trained on the responses of the pairs."""

    backbone: str
    layer: int


FeatureSource = BackboneLayer | Path | Recipe
"""What features are made of: a backbone's layer, the folder of an SAE of tokens, or a recipe with one."""


def build_training_config(
    name: str,
    pairs: str,
    test: str | None,
    *,
    data_license: str,
    source: FeatureSource,
    on_bad_row: BadRowHandler | None,
    **choices: Any,
) -> pipeline.TrainingConfig:
    """Read the pairs and return a training configuration; `choices` are further fields of it."""
    train_pairs = read_pairs(pairs, on_bad_row)
    data = TrainingData(Path(pairs).name, source_sha256(pairs), len(train_pairs), data_license)
    test_pairs = read_pairs(test, on_bad_row) if test else []
    if isinstance(source, BackboneLayer):
        sae_name, sae_input = f"of the responses in {data.name}", SaeInput.RESPONSES
    else:
        sae_name, sae_input = source.name, SaeInput.TOKENS
    return pipeline.TrainingConfig(
        name=name, pairs=train_pairs, data=data, test_pairs=test_pairs, sae_name=sae_name,
        sae_input=sae_input, **choices,
    )  # fmt: skip


def find_source(
    recipe: str | None,
    sae_folder: Path | None,
    features: SaeInput | None,
    default: BackboneLayer,
    settings: Settings,
) -> FeatureSource:
    """Return the source of features that the options of `sparserm train` ask for.

    Features of responses use the backbone and the layer of the SAE or recipe, if there is one.
    """
    sae = find_recipe(recipe, settings.models_dir) if recipe else sae_folder
    if features is SaeInput.TOKENS and sae is None:
        raise SourceError("features of tokens need --sae or --recipe")
    if sae is None:
        return default
    if features is not SaeInput.RESPONSES:
        return sae
    if isinstance(sae, Recipe):
        return BackboneLayer(sae.backbone, sae.sae.layer)
    provenance = sae_jobs.read_provenance(sae)
    return BackboneLayer(provenance["backbone"], provenance["layer"])


def build_data_choices(augment: float, control: float, latents: int, seed: int) -> dict[str, Any]:
    """Return the fields of a training configuration about augmentation, limitations and the SAE."""
    return {
        "augmentation": AugmentationShares(augment, control),
        "limitations": limitation_pairs.read_limitations(limitation_pairs.FOLDER),
        "response_sae": ResponseSaeConfig(latents=latents, seed=seed),
    }


def build_head_config(
    source: FeatureSource, kind: HeadKind | None, heads: int, length_debiasing: float, seed: int
) -> HeadConfig:
    """Return the hyperparameters before tuning; by default linear for features of responses."""
    if kind is None:
        kind = HeadKind.LINEAR if isinstance(source, BackboneLayer) else HeadKind.NETWORK
    if kind is HeadKind.LINEAR:
        return LinearHeadConfig(heads=heads, length_debiasing=length_debiasing, seed=seed)
    if length_debiasing:
        raise SourceError("--length-debiasing needs a linear head")
    return NetworkHeadConfig(heads=heads, seed=seed)


def train_and_save(
    config: pipeline.TrainingConfig, source: FeatureSource, settings: Settings, progress: Progress
) -> RewardModel:
    """Train a reward model on the features of a source; write its bundle and report."""
    if isinstance(source, Recipe):
        source = import_pretrained_sae(source, config.pairs, config.data.sha256, settings, progress)
    provenance = sae_jobs.read_provenance(source) if isinstance(source, Path) else {}
    passages = config.choose_passages and config.pooling is Pooling.MEAN
    extractor = load_feature_extractor(source, settings, progress, passages=passages)
    trained = pipeline.train(config, extractor, settings.cache, progress, provenance.get("neuronpedia"))
    folder = settings.models_dir / config.name
    bundle.save_bundle(trained.model, folder)
    sections = {"sae": provenance} if provenance else {}
    reports.create(folder, trained.model.card, trained.results | sections)
    return trained.model


def load_feature_extractor(
    source: BackboneLayer | Path,
    settings: Settings,
    progress: Progress,
    *,
    layers: tuple[int, ...] = (),
    passages: bool = False,
) -> FeatureExtractor:
    """Load a backbone, and the SAE of tokens in a folder, which must have been trained on that backbone.

    Further `layers`, and with `passages` the residuals by passage, are extracted too.
    """
    provenance = sae_jobs.read_provenance(source) if isinstance(source, Path) else {}
    name, layer = (
        (source.backbone, source.layer)
        if isinstance(source, BackboneLayer)
        else (provenance["backbone"], provenance["layer"])
    )
    backbone, tokenizer = loading.load_backbone(name, max((layer, *layers)), settings, progress)
    all_layers = (layer, *(further for further in layers if further != layer))
    extractor = FeatureExtractor(backbone, tokenizer, all_layers, passages=passages)
    if isinstance(source, BackboneLayer):
        return extractor
    if backbone.digest != provenance["backbone_digest"]:
        raise SourceError(
            f"{source} was trained on {provenance['backbone_digest']}, not on {backbone.digest}"
        )
    dictionary = sae_training.load_sae(source).independent_latents().to(backbone.device)
    if dictionary.encoder.shape[1] != backbone.hidden_size:
        raise SourceError(
            f"{source} encodes residuals of size {dictionary.encoder.shape[1]}, "
            f"but those of {backbone.name} have size {backbone.hidden_size}"
        )
    sha256 = compute_sha256(source / sae_training.WEIGHTS_FILE)
    return replace(extractor, dictionary=dictionary, sae_sha256=sha256)


def load_model_extractor(
    model: RewardModel, sae_folder: Path | None, settings: Settings, progress: Progress
) -> FeatureExtractor:
    """Load what a model's features are extracted with; features of tokens need the folder of their SAE."""
    card = model.card
    if card.sae_input is SaeInput.RESPONSES:
        return load_feature_extractor(BackboneLayer(card.backbone, card.layer), settings, progress)
    if sae_folder is None:
        raise SourceError(f"{card.name} has features of tokens: give the folder of their SAE with --sae")
    return load_feature_extractor(sae_folder, settings, progress)
