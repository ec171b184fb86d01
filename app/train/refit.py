"""A head learnt again from more pairs, over the same directions: seconds, because features are kept.

Names, plan and layer stay; head, calibration and probes are new. The bundle is replaced file by file from a
finished copy, and its seal comes last. Its report forgets what was measured of the old head.
"""

from dataclasses import replace
from pathlib import Path

import torch

from app.backbone.model_sources import Progress
from app.evaluate import report as reports
from app.reward import bundle
from app.reward.bundle import DIGESTED_FILES
from app.reward.reward_model import RewardModel, TrainingData
from app.settings import Settings
from app.train import head_training, jobs, pipeline
from app.train.calibration import ResponseLengths, calibrate_head
from app.train.features import FeatureExtractor
from app.train.names.contexts import collect_contexts
from app.types import Pair

NEW, SEAL = ".new", "SHA256SUMS"
KEPT = ("training", "selection", "names", "sae")
"""What a report goes on saying: how the directions came to be. What was measured was of another head."""


def refit(
    name: str,
    known: list[Pair],
    new: list[Pair],
    data: TrainingData,
    *,
    sae: Path,
    settings: Settings,
    progress: Progress,
) -> RewardModel:
    """Learn the head of a bundle from the pairs it knows and new ones; `data` says what the latter are."""
    folder = settings.models_dir / name
    _settle(folder)
    model = bundle.load_bundle(folder)
    known = known[: model.card.data[0].pairs]
    found = reports.read(folder)
    plan = head_training.HeadTrainingConfig(**found["training"]["plan"])
    reader = jobs.load_feature_extractor(sae, settings, progress)
    made = _learnt(model, [*known, *new], plan, reader, settings.cache, progress)
    sources = tuple(one for one in model.card.data if one.name != data.name)
    card = replace(
        made.card, data=(*sources, data), metrics={}, trained_parameters=made.head.num_parameters,
        use="research use only" if "NC" in data.license else made.card.use,
    )  # fmt: skip
    made = replace(made, card=card)
    bundle.save_bundle(made, folder / NEW)
    reports.create(folder, card, {part: found[part] for part in KEPT if part in found})
    _settle(folder)
    return made


def _learnt(
    model: RewardModel,
    pairs: list[Pair],
    plan: head_training.HeadTrainingConfig,
    reader: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> RewardModel:
    card, directions = model.card, model.dictionary.to(torch.device("cpu"))
    seen = pipeline.table(pairs, reader, cache, "pairs", progress)
    dressed = pipeline.drilled(pipeline.DRILLS, pairs, seen, reader, cache, progress)
    lesson = head_training.TrainingSet.from_vectors(
        seen.pooled_residuals(card.layer, card.readout), directions.directions, [pair.group for pair in pairs]
    )
    if dressed:
        vectors = dressed.table.pooled_residuals(card.layer, card.readout)
        lesson = lesson.with_augmented(directions.project(vectors), dressed.groups)
    head = head_training.fit_head(lesson, plan, lambda epoch: progress("head", epoch / plan.epochs))
    read = collect_contexts(pairs, reader, cache, lambda done: progress("single tokens", done))
    single = directions.project(read.residuals[torch.from_numpy(read.response_offset >= 0)].cpu())
    lengths = ResponseLengths(seen.lengths(), seen.pooled_lengths(card.readout))
    tables = calibrate_head(head, lesson, lengths, single, plan, lambda done: progress("calibration", done))
    made = replace(model, head=head, calibration=tables, card=replace(card, temperature=tables.temperature))
    return replace(made, probes=pipeline.probes(made, reader))


def _settle(folder: Path) -> None:
    """Put a finished copy in place of the bundle; one that was not finished is left for the next attempt."""
    made = folder / NEW
    if not (made / SEAL).exists():
        return
    (folder / SEAL).unlink(missing_ok=True)
    for name in DIGESTED_FILES:
        if (made / name).exists():
            (made / name).replace(folder / name)
    (made / SEAL).replace(folder / SEAL)
    made.rmdir()
