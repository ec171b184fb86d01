"""What every command needs: settings that name a bad one, kind failures, progress bars."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.errors import SourceError, SparseRMError
from app.settings import Settings

console = Console(stderr=True)
Report = Callable[[str, float], None]
DEFAULT_BACKBONE = "smollm2-135m-instruct"
DEFAULT_SAE = Path("models/sae/smollm2-135m-instruct-l18")
PAIRS_HELP = (
    "JSONL (or .gz), parquet, or hub:ORG/NAME with :CONFIG, @REVISION and #SPLIT as needed; rows of prompt "
    "or messages, chosen, rejected, or HH-style transcripts."
)


class OnBad(StrEnum):
    """What to do about a row that cannot be read."""

    STOP = "stop"
    SKIP = "skip"

    @property
    def reporter(self) -> Callable[[SparseRMError], None] | None:
        """Who hears of bad rows; nobody, when the first one is an error."""
        return _skipped if self is OnBad.SKIP else None


def _skipped(problem: SparseRMError) -> None:
    console.print(f"[yellow]skipped:[/yellow] {problem}", highlight=False)


@contextmanager
def failing_kindly() -> Iterator[None]:
    """A known failure, or one of the disk, is one sentence and exit code 1, not a traceback."""
    try:
        yield
    except (SparseRMError, OSError, sqlite3.Error) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error


@contextmanager
def needing_ray() -> Iterator[None]:
    """Import what wants the extra, or say so."""
    try:
        yield
    except ImportError as error:
        raise SourceError("--ray wants the extra: pip install 'sparserm[ray]'") from error


@contextmanager
def progress() -> Iterator[Report]:
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


def settings(**given: Any) -> Settings:
    """Settings from the environment; a bad one is named."""
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = f"SPARSERM_{problem['loc'][0]}".upper()
            console.print(f"[red]error:[/red] {name}: {problem['msg']}", highlight=False)
        raise typer.Exit(1) from error
