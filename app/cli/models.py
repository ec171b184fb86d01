"""`sparserm models`: what is on this machine, and fetching what is not."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.common import console, failing_kindly, progress, settings

app = typer.Typer(help="Backbones and reward models on this machine.", no_args_is_help=True)


@app.command("pull")
def models_pull(
    name: Annotated[
        str, typer.Argument(help="A name of models/backbones.toml, org/name@commit, or a folder.")
    ],
    layers: Annotated[
        int | None, typer.Option(help="How many layers to keep; default: what the models read.")
    ] = None,
) -> None:
    """Fetch, verify, convert and cache a backbone."""
    from app.backbone import model_sources
    from app.reward import loading

    chosen = settings()
    with failing_kindly(), progress() as report:
        source = model_sources.find(name, chosen.models_dir)
        depth = layers or loading.find_deepest_layer(name, chosen)
        place = model_sources.pull(source, layers=depth, cache=chosen.cache, progress=report)
    console.print(f"{name} is in {place.path}", highlight=False)


@app.command("list")
def models_list() -> None:
    """The backbones known by name and the reward models in the models folder."""
    from app.backbone import model_sources
    from app.reward import bundle

    chosen = settings()
    table = Table("name", "kind", "about", "license or use")
    for name, source in model_sources.catalogue(chosen.models_dir).items():
        table.add_row(name, "backbone", source.about, source.license)
    with failing_kindly():
        for name in bundle.list_bundles(chosen.models_dir):
            card = bundle.load_bundle(chosen.models_dir / name).card
            table.add_row(
                name, "reward model", f"{card.backbone}, layer {card.layer}, {card.readout}", card.use
            )
    Console().print(table)


@app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A reward model.")]) -> None:
    """A reward model's manifest: data, licenses, digests, measured quality."""
    chosen = settings()
    with failing_kindly():
        from app.reward import bundle

        bundle.load_bundle(chosen.models_dir / name)
    Console().print_json((chosen.models_dir / name / "manifest.json").read_text())
