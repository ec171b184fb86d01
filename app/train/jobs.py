"""From files and settings to finished bundles: what `sparserm train` does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from app.backbone.model_sources import Progress, file_digest
from app.data.pairs import BadRowHandler, read_pairs, source_sha256
from app.errors import SourceError
from app.evaluate import report as reports
from app.reward import bundle, loading
from app.reward.reward_model import RewardModel, TrainingData
from app.settings import Settings
from app.train import head_training, pipeline
from app.train.feature_cache import TensorCache
from app.train.features import FeatureExtractor
from app.train.presets import Recipe
from app.train.sae import jobs as sae_jobs
from app.train.sae import training as sae
from app.train.sae.import_pretrained import import_pretrained_sae
from app.train.variants import Arena
from app.types import Pair
from benchmarks.research import ablate as ablation
from benchmarks.research import beyond, compare_standard_rm, standard_rm, trl_baseline


def load_feature_extractor(
    folder: Path, settings: Settings, progress: Progress, *, layers: tuple[int, ...] = ()
) -> FeatureExtractor:
    """The backbone an SAE belongs to, resident and ready to be read; further layers as asked."""
    made_from = sae_jobs.read_provenance(folder)
    first: int = made_from["layer"]
    depth = max(first, *layers) if layers else first
    backbone, text = loading.load_backbone(made_from["backbone"], depth, settings, progress)
    if backbone.digest != made_from["backbone_digest"]:
        raise SourceError(f"{folder} was trained on {made_from['backbone_digest']}, not on {backbone.digest}")
    dictionary = sae.load_sae(folder).independent_latents().to(backbone.device)
    if dictionary.encoder.shape[1] != backbone.hidden_size:
        raise SourceError(f"{folder} reads {dictionary.encoder.shape[1]} numbers, not {backbone.hidden_size}")
    others = tuple(layer for layer in layers if layer != first)
    return FeatureExtractor(backbone, text, (first, *others), dictionary, file_digest(folder / sae.WEIGHTS))


def train_and_save(
    what: pipeline.TrainingConfig, source: Path | Recipe, settings: Settings, progress: Progress
) -> RewardModel:
    """Train a reward model on the SAE in a folder or of a recipe; write its bundle and its report."""
    if isinstance(source, Recipe):
        source = import_pretrained_sae(source, what.pairs, what.data.sha256, settings, progress)
    origin = sae_jobs.read_provenance(source)
    read = load_feature_extractor(source, settings, progress)
    made = pipeline.train(what, read, settings.cache, progress, origin.get("neuronpedia"))
    out = settings.models_dir / what.name
    bundle.save_bundle(made.model, out)
    reports.create(out, made.model.card, made.findings | {"sae": origin})
    return made.model


def build_training_config(
    name: str,
    pairs: str,
    test: str | None,
    *,
    terms: str,
    sae: Path | Recipe,
    bad: BadRowHandler | None,
    **choices: Any,
) -> pipeline.TrainingConfig:
    """Read the data and say what to make of it; `choices` are fields of Order."""
    rows = read_pairs(pairs, bad)
    data = TrainingData(Path(pairs).name, source_sha256(pairs), len(rows), terms)
    tested = read_pairs(test, bad) if test else []
    return pipeline.TrainingConfig(name=name, pairs=rows, data=data, test_pairs=tested, sae_name=sae.name, **choices)


def ablate(
    name: str,
    pairs: str,
    test: str,
    folder: Path,
    settings: Settings,
    progress: Progress,
    *,
    layers: tuple[int, ...],
    seeds: int,
    limit: int,
    elsewhere: list[str],
    bad: BadRowHandler | None,
) -> None:
    """Compare every variant of a bundle's recipe on its data and beyond; the findings join its report."""
    out = settings.models_dir / name
    card = bundle.load_bundle(out).card
    train, tested = read_pairs(pairs, bad), read_pairs(test, bad)
    asked = beyond.Questions.of(tested, {Path(one).stem: read_pairs(one, bad) for one in elsewhere})
    ours = load_feature_extractor(folder, settings, progress, layers=layers)
    plan = head_training.HeadTrainingConfig(**reports.read(out)["training"]["plan"])
    tables = [
        pipeline.table(rows, ours, settings.cache, what, progress)
        for what, rows in (("training pairs", train), ("test pairs", tested))
    ]
    shallow = replace(ours, layers=ours.layers[:1])
    dressed = pipeline.drilled(pipeline.DRILLS, train, tables[0], shallow, settings.cache, progress)
    arena = Arena(
        train, tables[0], tested, tables[1], ours.dictionary, card.layer, card.readout,
        card.directions // 2, plan, dressed,
    )  # fmt: skip
    shelf = TensorCache(settings.cache / "ablations" / f"{name}.sqlite")
    most = min(limit, len(train))
    study = ablation.Study(arena, most, shelf, repr(ours.cache_kinds), seeds=seeds, layers=ours.layers)
    read = pipeline.table(asked.pairs, shallow, settings.cache, "pairs beyond the test", progress)
    found = {"ablation": ablation.run(study, progress), "beyond": beyond.run(study, asked, read, progress)}
    reports.update(out, card, found)
    shelf.clear()


def against_standard(
    what: pipeline.TrainingConfig,
    folder: Path,
    sizes: list[int],
    plan: standard_rm.StandardPlan,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Train a StandardRM beside ours on the same pairs; the findings join the bundle's report."""
    out = settings.models_dir / what.name
    card = bundle.load_bundle(out).card
    llm = loading.fetch_full_backbone(card.backbone, settings, progress)
    ours = load_feature_extractor(folder, _alike(settings), progress)
    alike = replace(what, k=card.directions // 2, readout=card.readout)
    found = compare_standard_rm.run(alike, ours, llm, sizes, plan, settings.cache, progress)
    known = compare_standard_rm.joined(reports.read(out).get("standard", {}), found)
    reports.update(out, card, {"standard": known})
    return known


def time_stock(
    name: str, pairs: list[Pair], count: int, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Time TRL as it ships beside the StandardRM of a duel; the finding joins the bundle's report."""
    out = settings.models_dir / name
    card = bundle.load_bundle(out).card
    llm = loading.fetch_full_backbone(card.backbone, settings, progress)
    _, text = loading.load_backbone(card.backbone, card.layer, _alike(settings), progress)
    found = trl_baseline.timed(llm, text, pairs, count, standard_rm.StandardPlan(), progress)
    reports.update(out, card, {"stock": found})
    return found


def _alike(settings: Settings) -> Settings:
    """As a StandardRM reads: as much of a text, in the same precision."""
    return settings.model_copy(
        update={"max_tokens": standard_rm.MAX_TOKENS, "dtype": standard_rm.precision()}
    )
