"""`sparserm audit`: what a file of preference pairs rewards, and which of its labels look wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.common import PAIRS_HELP, console, load_settings, require_extra, show_progress

if TYPE_CHECKING:
    from app.train.pair_audit.report import PairAudit

app = typer.Typer()


@app.command("audit")
def audit(
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    model: Annotated[str, typer.Option(help="A reward model whose concepts describe the pairs.")],
    out: Annotated[Path, typer.Option(help="Folder for report.md and pairs.jsonl.")] = Path("audit"),
    test: Annotated[
        str | None, typer.Option(help="Another file, whose prompts should not be in PAIRS.")
    ] = None,
    sae: Annotated[
        Path | None, typer.Option(help="Folder of the SAE, for models with features of tokens.")
    ] = None,
    drop: Annotated[int, typer.Option(min=0, help="Leave the N most suspicious pairs out of --write.")] = 0,
    flip: Annotated[int, typer.Option(min=0, help="Flip the N most suspicious labels in --write.")] = 0,
    write: Annotated[Path | None, typer.Option(help="JSONL file for the repaired copy.")] = None,
) -> None:
    """Say in words what preference pairs reward, and list labels that look wrong and duplicates."""
    if bool(drop or flip) != (write is not None) or (drop and flip):
        raise typer.BadParameter("a repaired copy needs --write and either --drop or --flip")
    require_extra("train")
    from app.train.pair_audit import jobs

    with show_progress() as progress:
        result = jobs.audit_pairs(pairs, model, test, sae, load_settings(), progress)
    jobs.save_audit(result, out)
    _print_audit(result)
    console.print(f"{out}/report.md has examples and duplicates, pairs.jsonl all labels", highlight=False)
    if write:
        suspicious = result.suspicious
        count = jobs.write_repaired(pairs, write, drop=set(suspicious[:drop]), flip=set(suspicious[:flip]))
        console.print(f"{count} pairs are in {write}", highlight=False)


def _print_audit(result: "PairAudit") -> None:
    from app.train.pair_audit.report import summarise

    table = Table("concept", "pairs that differ", "preferred", "at equal length", title=f"{result.source}")
    for effect in result.measured:
        interval = f"{effect.controlled:.0%} [{effect.low:.0%}, {effect.high:.0%}]"
        table.add_row(effect.name, f"{effect.share:.0%}", f"{effect.win_rate:.0%}", interval)
    Console().print(table)
    console.print(summarise(result), highlight=False)
    rows = ", ".join(str(row + 1) for row in result.suspicious[:10])
    console.print(f"labels to look at first, by row: {rows}", highlight=False)
