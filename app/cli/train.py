"""Commands that train reward models and SAEs, fetch public data and list recipes."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from app.cli.common import (
    DEFAULT_BACKBONE,
    PAIRS_HELP,
    BadRowPolicy,
    console,
    load_settings,
    require_extra,
    show_progress,
)
from app.types import HeadKind, Pooling, SaeInput

if TYPE_CHECKING:
    from app.settings import Settings
    from app.train.jobs import FeatureSource
    from app.train.pipeline import TrainingConfig

app = typer.Typer()
sae = typer.Typer(help="Sparse autoencoders of a backbone.", no_args_is_help=True)
app.add_typer(sae, name="sae")

RecipeOption = Annotated[
    str | None, typer.Option(help="Backbone and SAE by name (`sparserm recipes`), or a .toml file.")
]
SaeOption = Annotated[
    Path | None,
    typer.Option(help="Make features of tokens with the SAE in this folder, made by `sparserm sae train`."),
]
BackboneOption = Annotated[
    str,
    typer.Option(help="Backbone by name, folder or org/name@commit. Not used with --recipe or --sae."),
]
LayerOption = Annotated[
    int,
    typer.Option(
        min=1, help="Read the residual stream after this many layers. Not used with --recipe or --sae."
    ),
]
LatentsOption = Annotated[
    int,
    typer.Option(min=2, help="Number of latents of the SAE of responses; not used for features of tokens."),
]
FeaturesOption = Annotated[
    SaeInput | None,
    typer.Option(
        "--features",
        help="responses: features of whole responses, from an SAE trained on the pairs. tokens: from the SAE "
        "of --sae or --recipe. By default tokens with --sae or --recipe, else responses.",
    ),
]
HeadOption = Annotated[
    HeadKind | None,
    typer.Option("--head", help="By default linear for features of responses, network for those of tokens."),
]
NoPassagesOption = Annotated[
    bool,
    typer.Option(
        "--no-passages",
        help="Read the response only as a whole. By default cross-validation chooses whether its "
        "sentences are read, too, which makes insertions less effective.",
    ),
]
LengthDebiasingOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Linear heads: share of the effect of length on preferences that is kept out of the reward.",
    ),
]
PoolingOption = Annotated[
    Pooling, typer.Option("--readout", help="Which token positions of a response are pooled.")
]
AugmentOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of pairs trained on once more with an augmented rejected response: with filler, "
        "compliments, a refusal, injected instructions and the like.",
    ),
]
ControlOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of all pairs that are also trained on with the same insertions in both responses; they "
        "are chosen among the augmented pairs.",
    ),
]
SliceOption = Annotated[
    list[str] | None,
    typer.Option("--slice", help="Also measure on pairs with this attribute, e.g. kind=generated."),
]
LicenseOption = Annotated[str, typer.Option("--license", help="License of the pairs.")]
DomainOption = Annotated[
    str, typer.Option(help="Which texts the pairs are, in words; answers to other texts say so.")
]
BadRowOption = Annotated[BadRowPolicy, typer.Option(help="What to do about rows that cannot be read.")]


@app.command()
def train(
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    *,
    task: Annotated[str, typer.Option(help="Name of the model.")],
    recipe: RecipeOption = None,
    sae: SaeOption = None,
    backbone: BackboneOption = DEFAULT_BACKBONE,
    layer: LayerOption = 18,
    features: FeaturesOption = None,
    latents: LatentsOption = 128,
    test: Annotated[str | None, typer.Option(help="Pairs to measure on; never trained on.")] = None,
    domain: DomainOption = "",
    data_license: LicenseOption = "not stated",
    pooling: PoolingOption = Pooling.MEAN,
    k: Annotated[int, typer.Option(min=1, help="Directions of each sign.")] = 24,
    head: HeadOption = None,
    heads: Annotated[int, typer.Option(min=1, max=64, help="Heads in the ensemble.")] = 8,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of training pairs; 0 uses all.")] = 1000,
    augment: AugmentOption = 0.5,
    control: ControlOption = 0.25,
    no_passages: NoPassagesOption = False,
    length_debiasing: LengthDebiasingOption = 0.0,
    slices: SliceOption = None,
    bad: BadRowOption = BadRowPolicy.STOP,
    seed: int = 0,
) -> None:
    """Train a reward model on preference pairs, write its bundle and report; a killed run resumes."""
    require_extra("train")
    from app.train import jobs

    settings, default = load_settings(), jobs.BackboneLayer(backbone, layer)
    source = jobs.find_source(recipe, sae, features, default, settings)
    config = jobs.build_training_config(
        task, pairs, test, data_license=data_license, source=source, on_bad_row=bad.error_handler,
        domain=domain, pooling=pooling, k=k, max_pairs=limit, slices=tuple(slices or ()),
        choose_passages=not no_passages,
        head=jobs.build_head_config(source, head, heads, length_debiasing, seed),
        **jobs.build_data_choices(augment, control, latents, seed),
    )  # fmt: skip
    _train(config, source, settings)


def _train(config: "TrainingConfig", source: "FeatureSource", settings: "Settings") -> None:
    from app.train import jobs

    with show_progress() as progress:
        jobs.train_and_save(config, source, settings, progress)
    _print_summary(settings.models_dir / config.name)


def _print_summary(folder: Path) -> None:
    from app.evaluate import report
    from app.evaluate.training_summary import render_summary

    console.print(render_summary(folder.name, report.read(folder)), highlight=False)
    console.print(
        f"{folder.name} is in {folder}; report.md has the tables, report.json all measurements",
        highlight=False,
    )


@app.command("recipes")
def list_recipes() -> None:
    """List the backbones with a pretrained SAE, ready for `sparserm train --recipe`."""
    from app.train import recipes

    settings = load_settings()
    table = Table(Column("recipe", no_wrap=True), "layer", "SAE", Column("about", overflow="fold"))
    for name in recipes.list_recipes(settings.models_dir):
        recipe = recipes.find_recipe(name, settings.models_dir)
        size_gib = recipe.sae.size_bytes / 2**30
        table.add_row(
            name,
            f"{recipe.sae.layer} of {recipe.layers}",
            f"{recipe.sae.latents:,} {recipe.sae.kind}, {size_gib:.1f} GiB",
            f"{recipe.backbone}: {recipe.about}; {recipe.license}",
        )
    Console().print(table)


@app.command("data")
def fetch_data(
    name: Annotated[
        str,
        typer.Argument(
            help="truthfulqa, saferlhf, hh, ultrafeedback, helpsteer, rewardbench, rewardbench2, rm-bench."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for NAME_train.jsonl and NAME_test.jsonl.")],
    source: Annotated[
        str | None, typer.Option(help="Read the rows of the set from here instead of from the hub.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the prompts in the test set.")
    ] = 0.2,
) -> None:
    """Fetch a public preference set and write it as pairs, split by prompt."""
    from app.data import public_datasets

    counts = public_datasets.write_public_dataset(name, out, source=source, test_share=test_share)
    data_license = public_datasets.PUBLIC_DATASETS[name].license
    console.print(f"{name} ({data_license}): {counts['train']} train, {counts['test']} test pairs in {out}")


@sae.command("train")
def train_sae(
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
        int, typer.Option(help="Activations to train on; more than harvested repeats them.")
    ] = 3_000_000,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on a backbone's activations; an interrupted run resumes."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # otherwise sae_lens shows a second progress bar
    require_extra("train")
    from app.train.sae import jobs

    with show_progress() as progress:
        config = jobs.SaeTrainingConfig(backbone, layer, width, k, rows, samples, seed)
        provenance = jobs.train_and_measure(config, chats, out, load_settings(), progress)
    console.print_json(json.dumps(provenance))


@sae.command("measure")
def measure_sae(
    folder: Annotated[Path, typer.Argument(help="An SAE made by `sparserm sae train`.")],
    chats: Annotated[
        list[str], typer.Argument(help="The files it was trained on; their first chats are held out.")
    ],
    compare_with: Annotated[
        Path | None, typer.Option(help="An SAE of another seed, to compare directions.")
    ] = None,
) -> None:
    """Measure explained variance, sparsity, dead latents, loss recovered, and agreement between seeds."""
    from app.train.sae import jobs

    with show_progress() as progress:
        provenance = jobs.measure_sae(folder, chats, compare_with, load_settings(), progress)
    console.print_json(json.dumps(provenance))
