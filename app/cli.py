"""The command line: each command is a few lines that call a room."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from app.errors import SparseRMError
from app.settings import Settings

app = typer.Typer(help="SparseRM: reward models one can read.", no_args_is_help=True)
models = typer.Typer(help="Backbones and reward models on this machine.", no_args_is_help=True)
sae = typer.Typer(help="Sparse autoencoders of a backbone.", no_args_is_help=True)
app.add_typer(models, name="models")
app.add_typer(sae, name="sae")
console = Console(stderr=True)
Report = Callable[[str, float], None]
DEFAULT_BACKBONE = "smollm2-135m-instruct"


@contextmanager
def _failing_kindly() -> Iterator[None]:
    """A known failure is one sentence and exit code 1, not a traceback."""
    try:
        yield
    except SparseRMError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error


@contextmanager
def _progress() -> Iterator[Report]:
    """One bar a stage, with time left; a stage that cannot tell its share pulses."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, share: float) -> None:
            if stage not in tasks:
                for done in tasks.values():
                    bars.update(done, total=1.0, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=None)
            if share > 0:
                bars.update(tasks[stage], total=1.0, completed=share)

        yield report


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve every reward model found; each setting is also a SPARSERM_… variable (docs/settings.md)."""
    import uvicorn
    from prometheus_client import REGISTRY

    from app.serve.server import create_app

    given: dict[str, Any] = {
        name: value for name, value in (("host", host), ("port", port)) if value is not None
    }
    settings = _settings(**given)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    with _failing_kindly():
        served = create_app(_engine(settings), settings, REGISTRY)
    uvicorn.run(
        served,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.drain_s,
    )


@app.command()
def train(
    pairs: Annotated[Path, typer.Argument(help="JSONL with prompt or messages, chosen, rejected.")],
    task: Annotated[str, typer.Option(help="Name of the model that is made.")],
    sae: Annotated[Path, typer.Option(help="Folder of an SAE made by `sparserm sae train`.")],
    test: Annotated[Path | None, typer.Option(help="Pairs to measure on; never trained on.")] = None,
    data_license: Annotated[str, typer.Option("--license", help="License of the pairs.")] = "not stated",
    readout: Annotated[str, typer.Option(help="mean, last or end: which residuals are read.")] = "mean",
    k: Annotated[int, typer.Option(help="Directions of each sign.")] = 128,
    limit: Annotated[int, typer.Option(help="Most pairs to train on.")] = 1000,
    seed: int = 0,
) -> None:
    """Train a reward model on preference pairs and write its bundle to the models folder."""
    from app.train import studio

    settings = _settings()
    with _failing_kindly(), _progress() as report:
        order = studio.order(pairs, test, name=task, terms=data_license, sae=sae, k=k, limit=limit, seed=seed)
        model = studio.make(order, sae, readout, settings, report)
    console.print((settings.models_dir / task / "report.md").read_text(), highlight=False)
    console.print(f"{model.card.name} is in {settings.models_dir / task}", highlight=False)


@sae.command("train")
def sae_train(
    chats: Annotated[Path, typer.Argument(help="JSONL (or .gz) of conversations: {messages: [...]}.")],
    out: Annotated[Path, typer.Option(help="Folder the SAE is written to.")],
    layer: Annotated[int, typer.Option(help="Read the residual stream after this many layers.")] = 18,
    backbone: Annotated[
        str, typer.Option(help="Backbone by name, folder or org/name@commit.")
    ] = DEFAULT_BACKBONE,
    width: Annotated[int, typer.Option(help="Number of latents.")] = 4608,
    k: Annotated[float, typer.Option(help="Latents active at a token, on average.")] = 48,
    tokens: Annotated[int, typer.Option(help="Activations to harvest.")] = 800_000,
    samples: Annotated[
        int, typer.Option(help="Activations to train on; more than harvested repeats.")
    ] = 3_000_000,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on a backbone's own activations; the harvest resumes if interrupted."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # sae_lens draws a second bar otherwise
    from app.train import studio

    with _failing_kindly(), _progress() as report:
        recipe = studio.SaeOrder(backbone, layer, width, k, tokens, samples, seed)
        facts = studio.make_sae(recipe, chats, out, _settings(), report)
    console.print_json(json.dumps(facts))


@models.command("pull")
def models_pull(
    name: Annotated[
        str, typer.Argument(help="A name of models/backbones.toml, org/name@commit, or a folder.")
    ],
    layers: Annotated[
        int | None, typer.Option(help="How many layers to keep; default: what the models read.")
    ] = None,
) -> None:
    """Fetch, verify, convert and cache a backbone."""
    from app.model import home, sources

    settings = _settings()
    with _failing_kindly(), _progress() as report:
        source = sources.find(name, settings.models_dir)
        depth = layers or home.depth(name, settings)
        place = sources.pull(source, layers=depth, cache=settings.cache, progress=report)
    console.print(f"{name} is in {place.path}", highlight=False)


@models.command("list")
def models_list() -> None:
    """The backbones known by name and the reward models in the models folder."""
    from app.model import bundle, sources

    settings = _settings()
    table = Table("name", "kind", "about", "license or use")
    for name, source in sources.catalogue(settings.models_dir).items():
        table.add_row(name, "backbone", source.about, source.license)
    with _failing_kindly():
        for name in bundle.names(settings.models_dir):
            card = bundle.load(settings.models_dir / name).card
            table.add_row(
                name, "reward model", f"{card.backbone}, layer {card.layer}, {card.readout}", card.use
            )
    Console().print(table)


@models.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A reward model.")]) -> None:
    """A reward model's manifest: data, licenses, digests, measured quality."""
    settings = _settings()
    with _failing_kindly():
        from app.model import bundle

        bundle.load(settings.models_dir / name)
    Console().print_json((settings.models_dir / name / "manifest.json").read_text())


def _settings(**given: Any) -> Settings:
    """Settings from the environment; a bad one is named."""
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = f"SPARSERM_{problem['loc'][0]}".upper()
            console.print(f"[red]error:[/red] {name}: {problem['msg']}", highlight=False)
        raise typer.Exit(1) from error


def _engine(settings: Settings) -> Any:
    from app.model import home

    with _progress() as report:
        return home.engine(settings, report)
