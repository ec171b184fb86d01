"""The command line: each command is a few lines that call a room."""

import typer

from app.backbone.runtime import memory, threads
from app.cli import align, evaluate, models, offline, serve, train

threads.stay_awake_briefly()
memory.keep()
app = typer.Typer(help="SparseRM: reward models one can read.", no_args_is_help=True)
app.add_typer(serve.app)
app.add_typer(train.app)
app.add_typer(evaluate.app)
app.add_typer(offline.app)
app.add_typer(align.app)
app.add_typer(models.app, name="models")
