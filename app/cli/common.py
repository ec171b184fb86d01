"""Shared by all commands: error handling, optional packages, settings and progress bars."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from typer.core import TyperGroup

from app.errors import MissingExtra, SparseRMError
from app.settings import Settings
from app.types import Progress

console = Console(stderr=True)
DEFAULT_BACKBONE = "smollm2-135m-instruct"
DEFAULT_SAE = Path("models/sae/smollm2-135m-instruct-l18")
PAIRS_HELP = (
    "Preference pairs: JSONL (or .gz), parquet, or hub:ORG/NAME with optional :CONFIG, @REVISION and #SPLIT. "
    "Rows have prompt or messages, chosen and rejected, or are transcripts as in HH-RLHF."
)
EXTRAS = {
    "train": {
        "datasets": "datasets", "matplotlib": "matplotlib", "pyarrow": "pyarrow", "sae_lens": "sae-lens",
        "scipy": "scipy", "sklearn": "scikit-learn",
    },
    "align": {"peft": "peft", "trl": "trl"},
    "ray": {"ray": "ray"},
    "otel": {
        "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry.instrumentation": "opentelemetry-instrumentation-asgi",
        "opentelemetry.sdk": "opentelemetry-sdk",
    },
}  # fmt: skip
"""The optional packages of each extra in pyproject.toml: import name and distribution name.

`opentelemetry` alone is not optional, since FastAPI needs opentelemetry-api.
"""


class BadRowPolicy(StrEnum):
    """What to do about a row that cannot be parsed."""

    STOP = "stop"
    SKIP = "skip"

    @property
    def error_handler(self) -> Callable[[SparseRMError], None] | None:
        """Function that is called with the error of each bad row, or None if the first one is raised."""
        return _print_skipped_row if self is BadRowPolicy.SKIP else None


def _print_skipped_row(error: SparseRMError) -> None:
    console.print(f"[yellow]skipped:[/yellow] {escape(str(error))}", highlight=False)


def _print_error(message: str) -> None:
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one line and exit with code 1, without a traceback.

    Expected are errors of SparseRM, of files and of SQLite, and missing packages of an optional extra.
    """
    try:
        yield
    except (SparseRMError, OSError, sqlite3.Error, ModuleNotFoundError) as error:
        expected = _convert_missing_module(error) if isinstance(error, ModuleNotFoundError) else error
        if expected is None:
            raise
        _print_error(str(expected))
        raise typer.Exit(1) from error


class ErrorHandlingGroup(TyperGroup):
    """Group of commands that all exit as `exit_on_error` does."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override] # typer's Context is click's
        """Run the command of the context."""
        with exit_on_error():
            return super().invoke(ctx)


def require_extra(extra: str) -> None:
    """Raise MissingExtra if a package of an optional extra is not installed.

    Long commands call it first, so that they do not fail after hours at a late import.
    """
    for module, package in EXTRAS[extra].items():
        if find_spec(module) is None:
            raise _missing_extra(package, extra)


def _convert_missing_module(error: ModuleNotFoundError) -> MissingExtra | None:
    """Return the error to show for a module of an optional extra; None for any other module."""
    for extra, packages in EXTRAS.items():
        for module, package in packages.items():
            if f"{error.name}.".startswith(f"{module}."):
                return _missing_extra(package, extra)
    return None


def _missing_extra(package: str, extra: str) -> MissingExtra:
    return MissingExtra(
        f"this command needs {package!r}, which is not installed: pip install 'sparserm[{extra}]'"
    )


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show one progress bar per stage, with the remaining time; a stage that reports no share pulses."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProgressBars(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, share: float) -> None:
            if stage not in tasks:
                for finished in tasks.values():
                    bars.update(finished, total=1.0, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=None)
            if share > 0:
                bars.update(tasks[stage], total=1.0, completed=share)

        yield update


def load_settings(**overrides: Any) -> Settings:
    """Return the settings from the environment and the overrides; exit with the name of an invalid one."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        for problem in error.errors():
            name = f"SPARSERM_{problem['loc'][0]}".upper()
            _print_error(f"{name}: {problem['msg']}")
        raise typer.Exit(1) from error
