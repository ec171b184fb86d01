"""Options that the commands of this package share."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli import common

ModelArgument = Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")]
PairsArgument = Annotated[str, typer.Argument(help="The pairs it was trained on.")]
TestArgument = Annotated[str, typer.Argument(help="The pairs it is measured on.")]
SaeOption = Annotated[Path, typer.Option(help="Folder of the SAE it was made from.")]
BadRowOption = Annotated[common.BadRowPolicy, typer.Option(help="What to do about rows that cannot be read.")]
