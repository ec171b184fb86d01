"""`sparserm evaluate`, `verify` and `stress`: accuracy, audit and robustness of a reward model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli.common import PAIRS_HELP, BadRowPolicy, console, load_settings, show_progress

app = typer.Typer()
BundleArgument = Annotated[Path, typer.Argument(help="Folder of a reward model.")]
PairsArgument = Annotated[str, typer.Argument(help=PAIRS_HELP)]
BadRowOption = Annotated[BadRowPolicy, typer.Option(help="What to do about rows that cannot be parsed.")]


@app.command()
def evaluate(
    bundle: BundleArgument,
    pairs: Annotated[
        str | None,
        typer.Argument(help=f"{PAIRS_HELP} With --suite: the file or folder to read it from."),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="Also evaluate the pairs that match a condition, e.g. kind=generated."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Print the metrics of a benchmark: rewardbench2, rm-bench or limitations."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="With --suite: score the first N prompts of each subset; 0 scores all.")
    ] = 0,
    bad: BadRowOption = BadRowPolicy.STOP,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how often a reward model agrees with preference pairs, scored as the server scores them."""
    if suite is None and (pairs is None or limit):
        raise typer.BadParameter("--limit needs --suite" if limit else "give PAIRS or --suite")
    if suite is not None and slices:
        raise typer.BadParameter("--slice is for PAIRS; a suite has its own subsets")
    results, tables = (
        _evaluate_suite(bundle, suite, pairs, limit, bad)
        if suite is not None
        else _evaluate_pairs(bundle, str(pairs), tuple(slices or ()), bad)
    )
    if as_json:
        print(json.dumps(results))  # noqa: T201 # the result itself, for machines
    else:
        Console().print(*tables)


def _evaluate_pairs(
    bundle: Path, pairs: str, slices: tuple[str, ...], bad: BadRowPolicy
) -> tuple[dict[str, Any], list[Table]]:
    """Return the measurements of a bundle on preference pairs, and as tables."""
    from app.data.pairs import read_pairs
    from app.evaluate import accuracy_run

    rows = read_pairs(pairs, bad.error_handler)
    with show_progress() as progress:
        results = accuracy_run.evaluate_bundle(bundle, rows, slices, load_settings(), progress)
    return results, [accuracy_run.render_table(results)]


def _evaluate_suite(
    bundle: Path, suite: str, source: str | None, limit: int, bad: BadRowPolicy
) -> tuple[dict[str, Any], list[Table]]:
    """Return the metrics of a bundle on a suite, and as tables."""
    from app.evaluate.suites import catalogue

    with show_progress() as progress:
        results = catalogue.evaluate_suite(
            bundle, suite, source, load_settings(), progress, limit=limit, on_bad_row=bad.error_handler
        )
    return results, catalogue.render_tables(results)


@app.command()
def verify(
    bundle: BundleArgument,
    pairs: PairsArgument,
    shifted: Annotated[
        str | None,
        typer.Option(help="Pairs from another distribution than the training pairs, to measure calibration."),
    ] = None,
    bad: BadRowOption = BadRowPolicy.STOP,
) -> None:
    """Measure explanations, uncertainty, calibration, length control and steering; add them to the report."""
    from app.data.pairs import read_pairs
    from app.evaluate.audit.audit import audit_bundle

    rows, shifted_rows = (
        read_pairs(source, bad.error_handler) if source else [] for source in (pairs, shifted)
    )
    with show_progress() as progress:
        results = audit_bundle(bundle, rows, shifted_rows, load_settings(), progress)
    Console().print_json(json.dumps(results))
    console.print(f"added to {bundle / 'report.md'}", highlight=False)


@app.command()
def stress(
    bundle: BundleArgument,
    pairs: PairsArgument,
    sample: Annotated[int, typer.Option(min=1, help="Maximum number of pairs to use.")] = 200,
    bad: BadRowOption = BadRowPolicy.STOP,
) -> None:
    """Measure robustness to rewrites, attacks and a greedy attack search; add the results to the report."""
    from app.data.pairs import read_pairs
    from app.evaluate.audit.robustness import evaluate_robustness

    rows = read_pairs(pairs, bad.error_handler)
    with show_progress() as progress:
        results = evaluate_robustness(bundle, rows, sample, load_settings(), progress)
    Console().print_json(json.dumps(results))
    console.print(f"added to {bundle / 'report.md'}", highlight=False)
