"""Trains the head of an existing bundle again, on more pairs, over the same directions.

Features are cached, so this takes seconds. Names, hyperparameters and layer stay; head, calibration and
probes are new. The new bundle is written completely, then moved file by file over the old one, its checksums
last. Measurements of the old head are removed from the report.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from app.errors import DataError
from app.evaluate import report as reports
from app.reward import bundle
from app.reward.bundle import CONCEPTS_FILE, DIGESTED_FILES
from app.reward.passages import PassageReading
from app.reward.reward_model import RewardModel, TrainingData
from app.settings import Settings
from app.train import assembly, jobs, steps
from app.train.augmentation.pairs import AugmentationShares
from app.train.features import FeatureExtractor
from app.train.head.fitting import HeadConfig, read_config
from app.train.limitations import evaluate_limitations
from app.types import Pair, Progress

STAGING_FOLDER = ".new"
CHECKSUMS_FILE = "SHA256SUMS"
KEPT_SECTIONS = ("training", "selection", "names", "named", "sae", "response_sae")
"""Sections of the report that describe the directions, which stay; the others measured the old head."""


def refit(
    name: str,
    known_pairs: list[Pair],
    new_pairs: list[Pair],
    data: TrainingData,
    *,
    settings: Settings,
    progress: Progress,
    limitations: Mapping[str, list[Pair]] | None = None,
) -> RewardModel:
    """Train the head of a bundle on its training pairs and on new pairs; `data` describes the new pairs.

    `limitations` are the pairs of each file that shows limitations; the new model is measured on them.
    """
    folder = settings.models_dir / name
    _install_staged_bundle(folder)
    model = bundle.load_bundle(folder)
    known_pairs = known_pairs[: model.card.data[0].pairs]
    results = reports.read(folder)
    config = read_config(results["training"]["plan"])
    source = jobs.BackboneLayer(model.card.backbone, model.card.layer)
    extractor = jobs.load_feature_extractor(
        source, settings, progress, passages=model.card.passages is not None
    )
    pairs = [*known_pairs, *new_pairs]
    reading = _find_reading(model, results)
    model = _train_again(model, pairs, config, reading, extractor, settings.cache, progress)
    kept = {part: results[part] for part in KEPT_SECTIONS if part in results}
    kept |= evaluate_limitations(model, limitations or {}, pairs, extractor, settings.cache, progress)
    other_data = tuple(source for source in model.card.data if source.name != data.name)
    card = replace(
        model.card, data=(*other_data, data), metrics=assembly.select_metrics(kept),
        trained_parameters=model.head.num_parameters,
        use=assembly.describe_permitted_use(data, model.card.use),
    )  # fmt: skip
    model = replace(model, card=card)
    bundle.save_bundle(model, folder / STAGING_FOLDER)
    reports.create(folder, card, kept)
    _install_staged_bundle(folder)
    return model


def _find_reading(model: RewardModel, results: Mapping[str, Any]) -> PassageReading | None:
    """Return how the model reads passages, as its report says; the card has the sharpness after scaling."""
    reading = TypeAdapter(PassageReading | None).validate_python(results["training"].get("reading"))
    if model.card.passages and reading is None:
        raise DataError(f"{model.card.name}: report.json does not say how passages are read; train it again")
    return reading


def _train_again(
    model: RewardModel,
    pairs: list[Pair],
    config: HeadConfig,
    reading: PassageReading | None,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> RewardModel:
    """Return the model with a new head, calibration and probes; directions, names and passages stay."""
    card = model.card
    selected = torch.tensor([k for k, feature in enumerate(model.features) if feature.sign])
    signs = torch.tensor([float(model.features[k].sign) for k in selected])
    dictionary = model.dictionary.to(torch.device("cpu")).select(selected)
    directions = steps.DirectionSet(dictionary, signs, card.layer, card.readout)
    extracted = steps.extract(pairs, extractor, cache, progress, augmentation=AugmentationShares())
    trained = steps.train_head(extracted, directions, config, progress, tune=False, passages=reading)
    contexts = steps.read_contexts(pairs, extractor, cache, progress)
    calibration = steps.calibrate(trained, contexts, progress)
    head, passages = trained.reward_function.head, trained.reward_function.passages
    card = replace(card, temperature=calibration.temperature, passages=passages, directions=len(head.center))
    model = replace(
        model, card=card, head=head, calibration=calibration,
        dictionary=steps.build_dictionary(directions, trained.reward_function),
    )  # fmt: skip
    return assembly.add_probes(model, extractor)


def _install_staged_bundle(folder: Path) -> None:
    """Move a staged bundle over the installed one if it is complete; else the next run overwrites it."""
    staged = folder / STAGING_FOLDER
    if not (staged / CHECKSUMS_FILE).exists():
        return
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)
    for name in (*DIGESTED_FILES, CONCEPTS_FILE):
        if (staged / name).exists():
            (staged / name).replace(folder / name)
        elif name == CONCEPTS_FILE:
            (folder / name).unlink(missing_ok=True)
    (staged / CHECKSUMS_FILE).replace(folder / CHECKSUMS_FILE)
    staged.rmdir()
