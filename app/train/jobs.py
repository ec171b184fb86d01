"""Trains a reward model from files and settings, and writes its bundle and report: `sparserm train`."""

from pathlib import Path
from typing import Any

from app.backbone.model_sources import compute_sha256
from app.data.pairs import BadRowHandler, read_pairs, source_sha256
from app.errors import SourceError
from app.evaluate import report as reports
from app.reward import bundle, loading
from app.reward.reward_model import RewardModel, TrainingData
from app.settings import Settings
from app.train import pipeline
from app.train.features import FeatureExtractor
from app.train.recipes import Recipe
from app.train.sae import jobs as sae_jobs
from app.train.sae import training as sae_training
from app.train.sae.import_pretrained import import_pretrained_sae
from app.types import Progress


def build_training_config(
    name: str,
    pairs: str,
    test: str | None,
    *,
    data_license: str,
    sae: Path | Recipe,
    on_bad_row: BadRowHandler | None,
    **choices: Any,
) -> pipeline.TrainingConfig:
    """Read the pairs and return a training configuration; `choices` are further fields of it."""
    train_pairs = read_pairs(pairs, on_bad_row)
    data = TrainingData(Path(pairs).name, source_sha256(pairs), len(train_pairs), data_license)
    test_pairs = read_pairs(test, on_bad_row) if test else []
    return pipeline.TrainingConfig(
        name=name, pairs=train_pairs, data=data, test_pairs=test_pairs, sae_name=sae.name, **choices
    )


def train_and_save(
    config: pipeline.TrainingConfig, source: Path | Recipe, settings: Settings, progress: Progress
) -> RewardModel:
    """Train a reward model on the SAE in a folder or of a recipe; write its bundle and report."""
    if isinstance(source, Recipe):
        source = import_pretrained_sae(source, config.pairs, config.data.sha256, settings, progress)
    provenance = sae_jobs.read_provenance(source)
    extractor = load_feature_extractor(source, settings, progress)
    trained = pipeline.train(config, extractor, settings.cache, progress, provenance.get("neuronpedia"))
    folder = settings.models_dir / config.name
    bundle.save_bundle(trained.model, folder)
    reports.create(folder, trained.model.card, trained.results | {"sae": provenance})
    return trained.model


def load_feature_extractor(
    sae_folder: Path, settings: Settings, progress: Progress, *, layers: tuple[int, ...] = ()
) -> FeatureExtractor:
    """Load an SAE and its backbone, which must be the one it was trained on; extract further `layers` too."""
    provenance = sae_jobs.read_provenance(sae_folder)
    sae_layer: int = provenance["layer"]
    depth = max(sae_layer, *layers) if layers else sae_layer
    backbone, tokenizer = loading.load_backbone(provenance["backbone"], depth, settings, progress)
    if backbone.digest != provenance["backbone_digest"]:
        raise SourceError(
            f"{sae_folder} was trained on {provenance['backbone_digest']}, not on {backbone.digest}"
        )
    dictionary = sae_training.load_sae(sae_folder).independent_latents().to(backbone.device)
    if dictionary.encoder.shape[1] != backbone.hidden_size:
        raise SourceError(
            f"{sae_folder} encodes residuals of size {dictionary.encoder.shape[1]}, "
            f"but those of {backbone.name} have size {backbone.hidden_size}"
        )
    further_layers = tuple(layer for layer in layers if layer != sae_layer)
    sha256 = compute_sha256(sae_folder / sae_training.WEIGHTS_FILE)
    return FeatureExtractor(backbone, tokenizer, (sae_layer, *further_layers), dictionary, sha256)
