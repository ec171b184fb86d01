"""`sparserm train`, `data`, `ablate`, `duel` and `sae`: from pairs and chats to models."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from app.cli.common import (
    DEFAULT_BACKBONE,
    DEFAULT_SAE,
    PAIRS_HELP,
    OnBad,
    console,
    failing_kindly,
    progress,
    settings,
)
from app.types import Pooling

app = typer.Typer()
sae = typer.Typer(help="Sparse autoencoders of a backbone.", no_args_is_help=True)
app.add_typer(sae, name="sae")


@app.command()
def train(
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    task: Annotated[str, typer.Option(help="Name of the model that is made.")],
    recipe: Annotated[
        str | None, typer.Option(help="Backbone and SAE by name (`sparserm recipes`), or a .toml file.")
    ] = None,
    sae: Annotated[
        Path, typer.Option(help="Without a recipe: folder of an SAE made by `sparserm sae train`.")
    ] = DEFAULT_SAE,
    test: Annotated[str | None, typer.Option(help="Pairs to measure on; never trained on.")] = None,
    data_license: Annotated[str, typer.Option("--license", help="License of the pairs.")] = "not stated",
    readout: Annotated[Pooling, typer.Option(help="Which residuals of a response are read.")] = Pooling.MEAN,
    k: Annotated[int, typer.Option(min=1, help="Directions of each sign.")] = 128,
    heads: Annotated[int, typer.Option(min=1, max=64, help="Heads in the ensemble.")] = 8,
    limit: Annotated[int, typer.Option(min=0, help="Most pairs to train on; 0 takes all.")] = 1000,
    drills: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pairs learnt from again, the bad answer dressed up.")
    ] = 0.5,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Also measure where this holds, e.g. kind=generated.")
    ] = None,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
    seed: int = 0,
) -> None:
    """Train a reward model on preference pairs, write its bundle and report; goes on where it was killed."""
    from app.train import head_training, jobs
    from app.train import presets as recipes

    chosen = settings()
    with failing_kindly():
        source = recipes.find_recipe(recipe, chosen.models_dir) if recipe else sae
        order = jobs.build_training_config(
            task, pairs, test, terms=data_license, sae=source, bad=bad.reporter,
            readout=readout, k=k, limit=limit, drills=drills, slices=tuple(slices or ()),
            plan=head_training.HeadTrainingConfig(heads=heads, seed=seed),
        )  # fmt: skip
        with progress() as report:
            model = jobs.train_and_save(order, source, chosen, report)
    told = (chosen.models_dir / task / "report.md").read_text()
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{model.card.name} is in {chosen.models_dir / task}", highlight=False)


@app.command()
def recipes() -> None:
    """Backbones with an SAE that somebody has trained, ready for `sparserm train --recipe`."""
    from app.train import presets as recipes

    chosen = settings()
    table = Table(Column("recipe", no_wrap=True), "layer", "SAE", Column("about", overflow="fold"))
    with failing_kindly():
        for name in recipes.list_recipes(chosen.models_dir):
            one = recipes.find_recipe(name, chosen.models_dir)
            latents = f"{one.sae.latents:,} {one.sae.kind}, {one.sae.size_bytes / 2**30:.1f} GiB"
            table.add_row(
                name,
                f"{one.sae.layer} of {one.layers}",
                latents,
                f"{one.backbone}: {one.about}; {one.license}",
            )
    Console().print(table)


@app.command()
def data(
    name: Annotated[
        str, typer.Argument(help="truthfulqa, saferlhf, hh, ultrafeedback, helpsteer, rewardbench, rm-bench.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for NAME_train.jsonl and NAME_test.jsonl.")],
    source: Annotated[
        str | None, typer.Option(help="Read the set's own rows from here instead of from the hub.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of prompts that go to the test.")
    ] = 0.2,
) -> None:
    """Fetch a public preference set and write it as pairs, split by prompt."""
    from app.data import public_datasets

    with failing_kindly():
        counts = public_datasets.write_public_dataset(name, out, source=source, test_share=test_share)
    console.print(
        f"{name} ({public_datasets.PUBLIC_DATASETS[name].license}): {counts['train']} train, {counts['test']} test pairs in {out}"
    )


@app.command()
def ablate(
    model: Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")],
    pairs: Annotated[str, typer.Argument(help="The pairs it was trained on.")],
    test: Annotated[str, typer.Argument(help="The pairs it is measured on.")],
    sae: Annotated[Path, typer.Option(help="Folder of the SAE it was made from.")] = DEFAULT_SAE,
    layers: Annotated[list[int] | None, typer.Option(help="Further layers to read densely.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each on its own training pairs.")] = 5,
    limit: Annotated[int, typer.Option(min=2, help="Training pairs that a variant gets.")] = 1000,
    elsewhere: Annotated[
        list[str] | None, typer.Option(help="Pairs of other tasks, to ask the same heads.")
    ] = None,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
) -> None:
    """Change one thing at a time in a model's recipe, measure, and add the findings to its report."""
    from app.train import jobs

    chosen = settings()
    with failing_kindly(), progress() as report:
        jobs.ablate(
            model, pairs, test, sae, chosen, report,
            layers=tuple(layers or ()), seeds=seeds, limit=limit, elsewhere=elsewhere or [], bad=bad.reporter,
        )  # fmt: skip
    console.print(f"added to {chosen.models_dir / model / 'report.md'}", highlight=False)


@app.command()
def duel(
    model: Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")],
    pairs: Annotated[str, typer.Argument(help="The pairs it was trained on.")],
    test: Annotated[str, typer.Argument(help="The pairs it is measured on.")],
    sae: Annotated[Path, typer.Option(help="Folder of the SAE it was made from.")] = DEFAULT_SAE,
    sizes: Annotated[
        list[int] | None, typer.Option(help="Numbers of training pairs (1000); those reported before stay.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of the StandardRM.")] = 3,
    rate: Annotated[float, typer.Option(help="Learning rate of the StandardRM.")] = 1e-3,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
) -> None:
    """Fine-tune a StandardRM (LoRA) on the same pairs as ours and compare; goes on where it was killed."""
    from app.train import jobs
    from benchmarks.research import standard_rm

    chosen = settings()
    with failing_kindly(), progress() as report:
        order = jobs.build_training_config(model, pairs, test, terms="", sae=sae, bad=bad.reporter)
        plan = standard_rm.StandardPlan(epochs=epochs, lr=rate)
        jobs.against_standard(order, sae, sizes or [1000], plan, chosen, report)
    console.print(f"added to {chosen.models_dir / model / 'report.md'}", highlight=False)


@app.command("stock")
def time_stock(
    model: Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")],
    pairs: Annotated[str, typer.Argument(help="The pairs it was trained on.")],
    count: Annotated[int, typer.Option("--count", min=2, help="On how many of them, drawn at random.")] = 32,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
) -> None:
    """Time TRL's RewardTrainer as it ships beside the StandardRM of `duel`, and add that to the report."""
    from app.data.pairs import read_pairs
    from app.train import jobs

    chosen = settings()
    with failing_kindly(), progress() as report:
        jobs.time_stock(model, read_pairs(pairs, bad.reporter), count, chosen, report)
    console.print(f"added to {chosen.models_dir / model / 'report.md'}", highlight=False)


@sae.command("train")
def sae_train(
    chats: Annotated[list[str], typer.Argument(help="Files of conversations ({messages}) or of pairs.")],
    out: Annotated[Path, typer.Option(help="Folder the SAE is written to.")],
    layer: Annotated[int, typer.Option(help="Read the residual stream after this many layers.")] = 18,
    backbone: Annotated[
        str, typer.Option(help="Backbone by name, folder or org/name@commit.")
    ] = DEFAULT_BACKBONE,
    width: Annotated[int, typer.Option(help="Number of latents.")] = 4608,
    k: Annotated[float, typer.Option(help="Latents active at a token, on average.")] = 48,
    rows: Annotated[int, typer.Option(help="Activations to harvest.")] = 1_000_000,
    samples: Annotated[
        int, typer.Option(help="Activations to train on; more than harvested repeats.")
    ] = 3_000_000,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on a backbone's own activations; goes on where it was interrupted."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # sae_lens draws a second bar otherwise
    from app.train.sae import jobs

    with failing_kindly(), progress() as report:
        order = jobs.SaeTrainingConfig(backbone, layer, width, k, rows, samples, seed)
        facts = jobs.train_and_measure(order, chats, out, settings(), report)
    console.print_json(json.dumps(facts))


@sae.command("measure")
def sae_measure(
    folder: Annotated[Path, typer.Argument(help="An SAE made by `sparserm sae train`.")],
    chats: Annotated[
        list[str], typer.Argument(help="The files it was trained on; it never saw their start.")
    ],
    beside: Annotated[
        Path | None, typer.Option(help="An SAE of another seed, to compare directions.")
    ] = None,
) -> None:
    """Explained variance, sparsity, dead latents, loss recovered, and agreement between seeds."""
    from app.train.sae import jobs

    with failing_kindly(), progress() as report:
        facts = jobs.measure_sae(folder, chats, beside, settings(), report)
    console.print_json(json.dumps(facts))
