"""`python -m benchmarks.research.ablate MODEL PAIRS TEST`: measures variants of the method."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from app.cli import common
from app.data.pairs import BadRowHandler, read_pairs
from app.evaluate import report as reports
from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train import jobs, steps
from app.train.augmentation.pairs import AugmentationShares, augment_pairs, extract_augmented
from app.train.feature_cache import TensorCache
from app.train.features import FeatureExtractor
from app.train.head.baselines import ComparisonData
from app.train.head.fitting import HeadConfig, read_config
from app.train.sae.response_sae import read_sae_config
from app.train.selection import LatentSource
from app.types import Pair, Progress
from benchmarks.research import options
from benchmarks.research.ablation import NUM_SEEDS, Ablation, run_ablation
from benchmarks.research.generalization import GeneralizationTests, measure_generalization

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: options.ModelArgument,
    pairs: options.PairsArgument,
    test: options.TestArgument,
    sae: options.SaeOption = None,
    layers: Annotated[
        list[int] | None, typer.Option(help="Further layers for the head on the whole residual.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions, each on its own training pairs.")
    ] = NUM_SEEDS,
    limit: Annotated[int, typer.Option(min=2, help="Training pairs of each variant.")] = 1000,
    elsewhere: Annotated[
        list[str] | None, typer.Option(help="Pairs of other tasks, on which the same heads are tested.")
    ] = None,
    bad: options.BadRowOption = common.BadRowPolicy.STOP,
) -> None:
    """Change one choice of the method at a time, measure, and add the results to the model's report."""
    settings = common.load_settings()
    with common.exit_on_error(), common.show_progress() as progress:
        ablate_and_report(
            model, pairs, test, sae, settings, progress,
            layers=tuple(layers or ()), seeds=seeds, limit=limit, elsewhere=elsewhere or [],
            on_bad_row=bad.error_handler,
        )  # fmt: skip
    common.console.print(f"added to {settings.models_dir / model / 'report.md'}", highlight=False)


def ablate_and_report(
    name: str,
    pairs: str,
    test: str,
    sae_folder: Path | None,
    settings: Settings,
    progress: Progress,
    *,
    layers: tuple[int, ...],
    seeds: int,
    limit: int,
    elsewhere: list[str],
    on_bad_row: BadRowHandler | None,
) -> None:
    """Measure every variant on a bundle's data and on other pairs; the results are added to its report."""
    folder = settings.models_dir / name
    trained = bundle.load_bundle(folder)
    card = trained.card
    train_pairs, test_pairs = read_pairs(pairs, on_bad_row), read_pairs(test, on_bad_row)
    other_pairs = {Path(source).stem: read_pairs(source, on_bad_row) for source in elsewhere}
    tests = GeneralizationTests.from_pairs(test_pairs, other_pairs)
    source = options.find_source(card, sae_folder)
    extractor = jobs.load_feature_extractor(source, settings, progress, layers=layers)
    results = reports.read(folder)
    config = read_config(results["training"]["plan"])
    data = _build_comparison_data(
        train_pairs, test_pairs, trained, config, extractor, settings.cache, progress
    )
    cache = TensorCache(settings.cache / "ablations" / f"{name}.sqlite")
    ablation = Ablation(
        data, min(limit, len(train_pairs)), cache, repr(extractor.cache_kinds), seeds=seeds,
        layers=extractor.layers, response_sae=read_sae_config(results),
    )  # fmt: skip
    further = steps.extract(
        tests.pairs, _use_one_layer(extractor), settings.cache, progress, stage="generalization pairs"
    )
    results = {
        "ablation": run_ablation(ablation, progress),
        "beyond": measure_generalization(ablation, tests, further.features, progress),
    }
    reports.update(folder, card, results)
    cache.clear()


def _build_comparison_data(
    train_pairs: list[Pair],
    test_pairs: list[Pair],
    model: RewardModel,
    config: HeadConfig,
    extractor: FeatureExtractor,
    cache: Path,
    progress: Progress,
) -> ComparisonData:
    """Extract the features of all pairs, at all layers, and of augmented pairs at the SAE's layer."""
    train = steps.extract(train_pairs, extractor, cache, progress)
    test = steps.extract(test_pairs, extractor, cache, progress, stage="test pairs")
    augmented = extract_augmented(
        train_pairs, train.features, augment_pairs(train_pairs, AugmentationShares()),
        _use_one_layer(extractor), cache, lambda done: progress("augmented pairs", done),
    )  # fmt: skip
    card = model.card
    latents = LatentSource(extractor.dictionary or model.dictionary, card.sae_input, card.layer, card.readout)
    return ComparisonData(
        train_pairs, train.features, test_pairs, test.features, latents, card.layer,
        card.readout, options.find_k(model), config, augmented,
    )  # fmt: skip


def _use_one_layer(extractor: FeatureExtractor) -> FeatureExtractor:
    """Return the extractor without the layers that the SAE does not encode."""
    return replace(extractor, layers=extractor.layers[:1])


if __name__ == "__main__":
    app()
