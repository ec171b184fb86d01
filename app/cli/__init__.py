"""The command line: each command is a few lines that call a room."""

import typer

from app.cli import aligning, bulk, measuring, models, serving, training
from app.model import heap, teams

teams.stay_awake_briefly()
heap.keep()
app = typer.Typer(help="SparseRM: reward models one can read.", no_args_is_help=True)
app.add_typer(serving.app)
app.add_typer(training.app)
app.add_typer(measuring.app)
app.add_typer(bulk.app)
app.add_typer(aligning.app)
app.add_typer(models.app, name="models")
