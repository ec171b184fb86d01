"""`python -m benchmarks.research.compare_standard_rm MODEL PAIRS TEST`: compares with a StandardRM.

SparseRM and StandardRM are trained on the same pairs; accuracy, time, size and memory are compared. Ours is
timed with an empty feature cache, extraction included, and runs first, so that the peak of memory is its own.
Neither is trained on augmented pairs, and both compute in the same precision.
"""

import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from app.cli import common
from app.evaluate import report as reports
from app.evaluate.accuracy import Float64Array, accuracy_difference, bootstrap_mean, pair_wins
from app.reward import bundle, loading
from app.settings import Settings
from app.train import jobs, pipeline, steps
from app.train.features import FeatureExtractor
from app.train.head.fitting import read_config
from app.train.sae.response_sae import read_sae_config
from app.types import Pair, Progress
from benchmarks.research import options, standard_rm

DEFAULT_SIZE = 1000
PROMPTS = "once a pair"
"""How often the StandardRM computes a prompt; results that differ in this are not merged."""
COSTS = ("seconds", "cpu_seconds", "trainable", "peak_gib", "precision")
app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: options.ModelArgument,
    pairs: options.PairsArgument,
    test: options.TestArgument,
    sae: options.SaeOption = None,
    sizes: Annotated[
        list[int] | None, typer.Option(help="Numbers of training pairs (1000); those reported before stay.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of the StandardRM.")] = 3,
    rate: Annotated[float, typer.Option(help="Learning rate of the StandardRM.")] = 1e-3,
    bad: options.BadRowOption = common.BadRowPolicy.STOP,
) -> None:
    """Fine-tune a StandardRM (LoRA) on the same pairs as ours and compare; a killed run resumes."""
    settings = common.load_settings()
    with common.exit_on_error(), common.show_progress() as progress:
        card = bundle.load_bundle(settings.models_dir / model).card
        source = options.find_source(card, sae)
        config = jobs.build_training_config(
            model, pairs, test, data_license="", source=source, on_bad_row=bad.error_handler
        )
        standard_config = standard_rm.StandardRMConfig(epochs=epochs, lr=rate)
        compare_and_report(config, source, sizes or [DEFAULT_SIZE], standard_config, settings, progress)
    common.console.print(f"added to {settings.models_dir / model / 'report.md'}", highlight=False)


def compare_and_report(
    config: pipeline.TrainingConfig,
    source: jobs.BackboneLayer | Path,
    sizes: list[int],
    standard_config: standard_rm.StandardRMConfig,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Compare at each number of pairs; the results are added to the report of a bundle and returned."""
    folder = settings.models_dir / config.name
    model = bundle.load_bundle(folder)
    card = model.card
    llm = loading.fetch_full_backbone(card.backbone, settings, progress)
    matched = standard_rm.match_settings(settings)
    extractor = jobs.load_feature_extractor(source, matched, progress)
    stored = reports.read(folder)
    config = replace(
        config, k=options.find_k(model), pooling=card.readout, response_sae=read_sae_config(stored),
        head=replace(read_config(stored["training"]["plan"]), seed=0),
    )  # fmt: skip
    new = compare(config, extractor, llm, sizes, standard_config, settings.cache, progress)
    results = merge_sizes(reports.read(folder).get("standard", {}), new)
    reports.update(folder, card, {"standard": results})
    return results


def compare(
    config: pipeline.TrainingConfig,
    extractor: FeatureExtractor,
    llm: Path,
    sizes: Sequence[int],
    standard_config: standard_rm.StandardRMConfig,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train both on the first pairs of each size and compare them on the test pairs, ready for JSON."""
    test = steps.extract(config.test_pairs, extractor, cache, progress, stage="test pairs")
    samples = {size: pipeline.take_training_pairs(replace(config, max_pairs=size)) for size in sizes}
    ours = {size: _train_ours(config, pairs, test, extractor, progress) for size, pairs in samples.items()}
    results: dict[str, Any] = {}
    for size, pairs in samples.items():
        theirs = standard_rm.train_and_score(
            llm, extractor.tokenizer, pairs, config.test_pairs, standard_config, cache, progress
        )
        our_wins, our_costs = ours[size]
        their_wins = pair_wins(torch.tensor(theirs.margins))
        results[str(size)] = {
            "pairs": len(pairs),
            "sparse": asdict(bootstrap_mean(our_wins, test.groups)) | our_costs,
            "standard": asdict(bootstrap_mean(their_wins, test.groups))
            | {cost: getattr(theirs, cost) for cost in COSTS},
            "lead": asdict(accuracy_difference(our_wins, their_wins, test.groups)),
        }
    conditions = {"plan": asdict(standard_config), "threads": torch.get_num_threads(), "prompts": PROMPTS}
    return {**conditions, "sizes": results}


def merge_sizes(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return new results, with other sizes of earlier ones that were made under the same conditions."""
    kept = before["sizes"] if before and _get_conditions(before) == _get_conditions(new) else {}
    sizes = {**kept, **new["sizes"]}
    return {**new, "sizes": {size: sizes[size] for size in sorted(sizes, key=int)}}


def _get_conditions(results: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what two comparisons must have in common to be in one table."""
    num_test_pairs = {row["lead"]["n"] for row in results["sizes"].values()}
    return results["plan"], results["threads"], results.get("prompts"), num_test_pairs


def _train_ours(
    config: pipeline.TrainingConfig,
    pairs: list[Pair],
    test: steps.ExtractedPairs,
    extractor: FeatureExtractor,
    progress: Progress,
) -> tuple[Float64Array, dict[str, Any]]:
    """Train a SparseRM with an empty cache; return its wins on the test pairs and its costs."""
    started = standard_rm.read_clocks()
    with tempfile.TemporaryDirectory() as empty:
        stage = f"SparseRM, {len(pairs)} pairs"
        extracted = steps.extract(pairs, extractor, Path(empty), progress, stage=stage)
    extraction_ended = standard_rm.read_clocks()
    source, _ = pipeline.build_latent_source(config, extracted, extractor, progress)
    _, directions = steps.select(extracted, source, config.k, config.head.seed)
    trained = steps.train_head(extracted, directions, config.head, progress)
    ended = standard_rm.read_clocks()
    rewards = trained.reward_function.compute_rewards(test.features)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    costs = {
        "seconds": round(ended[0] - started[0], 1),
        "seconds_fitting": round(ended[0] - extraction_ended[0], 1),
        "cpu_seconds": round(ended[1] - started[1], 1),
        "trainable": trained.reward_function.head.num_parameters,
        "peak_gib": round(peak_gib, 2),
        "precision": str(extractor.backbone.dtype).removeprefix("torch."),
    }
    return pair_wins(rewards[:, 0] - rewards[:, 1]), costs


if __name__ == "__main__":
    app()
