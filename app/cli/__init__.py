"""The command line. A command parses its options and calls one of the other packages."""

from importlib.metadata import version
from typing import Annotated

import typer

from app.backbone.runtime import memory, threads
from app.cli import align, audit, evaluate, models, names, offline, serve, train
from app.cli.common import ErrorHandlingGroup

threads.limit_openmp_spinning()
memory.keep_freed_memory()
app = typer.Typer(help="SparseRM: interpretable reward models.", no_args_is_help=True, cls=ErrorHandlingGroup)
app.add_typer(serve.app)
app.add_typer(train.app)
app.add_typer(evaluate.app)
app.add_typer(audit.app)
app.add_typer(offline.app)
app.add_typer(align.app)
app.add_typer(models.app, name="models")
app.add_typer(names.features, name="features")
app.add_typer(names.names, name="names")


def _print_version(requested: bool) -> None:  # noqa: FBT001 # the signature of an option's callback
    if requested:
        typer.echo(f"sparserm {version('sparserm')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Handle the options before a command. `--version` exits in its callback, so its value is unused."""
