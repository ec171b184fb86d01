"""`sparserm models`: lists the models on this machine and downloads backbones."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.common import console, load_settings, show_progress

if TYPE_CHECKING:
    from app.reward.reward_model import ModelCard

app = typer.Typer(help="Backbones and reward models on this machine.", no_args_is_help=True)


@app.command("pull")
def models_pull(
    name: Annotated[
        str, typer.Argument(help="A name in models/backbones.toml, org/name@commit, or a folder.")
    ],
    layers: Annotated[
        int | None,
        typer.Option(help="Number of layers to keep; by default as many as the installed models need."),
    ] = None,
) -> None:
    """Download, verify, convert and cache a backbone."""
    from app.backbone import model_sources
    from app.reward import loading

    settings = load_settings()
    with show_progress() as progress:
        source = model_sources.find_source(name, settings.models_dir)
        checkpoint = model_sources.fetch_checkpoint(
            source,
            num_layers=layers or loading.find_deepest_layer(name, settings),
            cache=settings.cache,
            progress=progress,
        )
    console.print(f"{name} is in {checkpoint.path}", highlight=False)


@app.command("list")
def models_list() -> None:
    """List the backbones of the catalogue and the reward models in the models folder."""
    from app.backbone import model_sources
    from app.reward import bundle

    models_dir = load_settings().models_dir
    table = Table("name", "kind", "about", "license or use")
    for name, source in model_sources.load_catalogue(models_dir).items():
        table.add_row(name, "backbone", source.about, source.license)
    for name in bundle.list_bundles(models_dir):
        card = bundle.load_bundle(models_dir / name).card
        table.add_row(name, "reward model", _describe(card), card.use)
    Console().print(table)


def _describe(card: "ModelCard") -> str:
    """Return what a reward model reads, what its features describe, and the kind of its head."""
    passages = f" and sentences (weighting: {card.passages.weighting})" if card.passages else ""
    return (
        f"{card.backbone}, layer {card.layer}, {card.readout}{passages}; "
        f"features of {card.sae_input}, {card.head_kind} head"
    )


@app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A reward model.")]) -> None:
    """Print a reward model's manifest: data, licenses, digests and measured quality."""
    from app.reward.bundle import load_bundle

    folder = load_settings().models_dir / name
    load_bundle(folder)
    Console().print_json((folder / "manifest.json").read_text())
