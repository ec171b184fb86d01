"""`sparserm evaluate`, `verify` and `stress`: whether a model is any good, and can be trusted."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.common import PAIRS_HELP, OnBad, console, failing_kindly, progress, settings

app = typer.Typer()


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a reward model.")],
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Also measure where this holds, e.g. kind=generated.")
    ] = None,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How often a reward model agrees with preference pairs, scored as they would be served."""
    from app.data.pairs import read_pairs
    from app.evaluate import accuracy_run

    with failing_kindly():
        rows = read_pairs(pairs, bad.reporter)
        with progress() as report:
            found = accuracy_run.evaluate_bundle(bundle, rows, tuple(slices or ()), settings(), report)
    if as_json:
        print(json.dumps(found))  # noqa: T201 # the answer itself, for machines
    else:
        Console().print(accuracy_run.render_table(found))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a reward model.")],
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    shifted: Annotated[
        str | None, typer.Option(help="Pairs unlike those it was trained on, to see calibration there.")
    ] = None,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
) -> None:
    """Test explanations, doubt, calibration, length control and steering; the figures join the report."""
    from app.data.pairs import read_pairs
    from app.evaluate.audit import audit as room

    with failing_kindly():
        rows, others = (read_pairs(one, bad.reporter) if one else [] for one in (pairs, shifted))
        with progress() as report:
            found = room.audit_bundle(bundle, rows, others, settings(), report)
    Console().print_json(json.dumps(found))
    console.print(f"added to {bundle / 'report.md'}", highlight=False)


@app.command()
def stress(
    bundle: Annotated[Path, typer.Argument(help="Folder of a reward model.")],
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    sample: Annotated[int, typer.Option(min=1, help="Most pairs to put under pressure.")] = 200,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
) -> None:
    """Say the same otherwise, dress up bad answers, climb the reward; the figures join the report."""
    from app.data.pairs import read_pairs
    from app.evaluate.audit import robustness as room

    with failing_kindly():
        rows = read_pairs(pairs, bad.reporter)
        with progress() as report:
            found = room.evaluate_robustness(bundle, rows, sample, settings(), report)
    Console().print_json(json.dumps(found))
    console.print(f"added to {bundle / 'report.md'}", highlight=False)
