"""`sparserm score`, `compare`, `filter` and `rank`: whole data sets, or one response."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.common import (
    PAIRS_HELP,
    Report,
    console,
    failing_kindly,
    needing_ray,
    progress,
    settings,
)
from app.cli.waterfall import waterfall
from app.errors import SparseRMError
from app.offline import run
from app.offline.checkpoint import RunCheckpoint, RunFiles
from app.offline.chunks import DEFAULT_BATCH_TOKENS
from app.offline.run import OfflineRunConfig
from app.offline.scorers import RowScorer, ScoringRequest
from app.offline.tasks import COMPARE, RANK, SCORE, PairFilter, filter_task
from app.settings import Settings
from app.types import Item, Message

app = typer.Typer()
INTERRUPTED = 130
FILES = (
    "JSONL (or .gz), parquet, or hub:ORG/NAME with :CONFIG, @REVISION and #SPLIT as needed; rows of prompt "
)
SCORED = f"{FILES}or messages and response, or of messages that end with it."
RANKED = f"{FILES}or messages and responses, a list."
MADE = "File for the rows with their new columns, .jsonl or .parquet."
Out = Annotated[Path, typer.Argument(metavar="OUT", help=MADE)]
Pairs = Annotated[str, typer.Argument(metavar="IN", help=PAIRS_HELP)]
Model = Annotated[str, typer.Option(help="A reward model, a composite, or MODEL@PROFILE.")]
Url = Annotated[
    str | None,
    typer.Option(help="Ask a server, such as http://127.0.0.1:8000, instead of loading the model."),
]
Key = Annotated[str | None, typer.Option(envvar="SPARSERM_KEY", help="Key for that server.")]
Spread = Annotated[
    bool, typer.Option("--ray", help="Score on a Ray cluster, by SPARSERM_WORKERS engines or one a GPU.")
]
TopK = Annotated[int, typer.Option(min=0, max=1000, help="How many features to list.")]
Length = Annotated[
    bool, typer.Option("--length-control", help="Take out of each reward what goes with its length.")
]
Prefix = Annotated[str, typer.Option(help="Put before the name of each new column.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, whatever an earlier run has left.")]


@app.command()
def score(
    source: Annotated[str | None, typer.Argument(metavar="IN", help=SCORED)] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help=MADE)] = None,
    *,
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="A prompt, instead of IN and OUT.")] = None,
    response: Annotated[str | None, typer.Option(help="The response to it.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print that response's reward as the API says it.")
    ] = False,
    url: Url = None,
    key: Key = None,
    ray: Spread = False,
    top_k: TopK = 5,
    length_control: Length = False,
    prefix: Prefix = "",
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Score a data set row by row, or one response and show how its reward comes about.

    New columns: reward, uncertainty, percentile, distance, truncated, features.
    Bad rows go to a file beside OUT, each with its reason.
    A killed run goes on when it is started again.
    """
    question = ScoringRequest(model, top_k, length_control=length_control)
    if source and out and prompt is None and response is None and not as_json:
        _run(
            OfflineRunConfig(SCORE, question, source, out, prefix, strict=strict, fresh=fresh),
            url,
            key,
            ray=ray,
        )
    elif prompt is not None and response is not None and source is None:
        _show(question, Item((Message("user", prompt),), response), url, key, as_json=as_json)
    else:
        raise typer.BadParameter("give IN and OUT, or --prompt and --response")


@app.command()
def compare(
    source: Pairs,
    out: Out,
    *,
    model: Model,
    url: Url = None,
    key: Key = None,
    ray: Spread = False,
    top_k: TopK = 5,
    length_control: Length = False,
    prefix: Prefix = "",
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Say of every pair which response is better, how surely, and which features make the difference.

    New columns: margin, probability, chosen_reward, rejected_reward, uncertainty, distance,
    truncated, features.
    Bad rows go to a file beside OUT, each with its reason.
    A killed run goes on when it is started again.
    """
    question = ScoringRequest(model, top_k, length_control=length_control, paired=True)
    _run(
        OfflineRunConfig(COMPARE, question, source, out, prefix, strict=strict, fresh=fresh),
        url,
        key,
        ray=ray,
    )


@app.command("filter")
def keep(
    source: Pairs,
    out: Out,
    *,
    model: Model,
    min_margin: Annotated[float, typer.Option(help="Drop pairs whose chosen leads by less.")] = 0.0,
    max_uncertainty: Annotated[float, typer.Option(help="Drop pairs whose margin is less certain.")] = inf,
    max_distance: Annotated[
        float, typer.Option(min=0, max=100, help="Drop pairs that are further from the training data.")
    ] = 100.0,
    url: Url = None,
    key: Key = None,
    ray: Spread = False,
    length_control: Length = False,
    prefix: Prefix = "",
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Drop the pairs a reward model disagrees with: by default those whose rejected response scores higher.

    That is how the SparseRM paper filters the pairs of online DPO.
    New columns: those of `compare` without features.
    Bad rows go to a file beside OUT, each with its reason.
    A killed run goes on when it is started again.
    """
    question = ScoringRequest(model, 0, length_control=length_control, paired=True)
    task = filter_task(PairFilter(min_margin, max_uncertainty, max_distance))
    _run(OfflineRunConfig(task, question, source, out, prefix, strict=strict, fresh=fresh), url, key, ray=ray)


@app.command()
def rank(
    source: Annotated[str, typer.Argument(metavar="IN", help=RANKED)],
    out: Out,
    *,
    model: Model,
    url: Url = None,
    key: Key = None,
    ray: Spread = False,
    top_k: TopK = 5,
    length_control: Length = False,
    prefix: Prefix = "",
    strict: Strict = False,
    fresh: Fresh = False,
) -> None:
    """Put the responses of every row in order; the best becomes `chosen`, the worst `rejected`.

    New columns: chosen, rejected, margin, order (best first), rewards, uncertainties, distances,
    truncated, features (of the best).
    Bad rows go to a file beside OUT, each with its reason.
    A killed run goes on when it is started again.
    """
    question = ScoringRequest(model, top_k, length_control=length_control)
    _run(OfflineRunConfig(RANK, question, source, out, prefix, strict=strict, fresh=fresh), url, key, ray=ray)


def _run(order: OfflineRunConfig, url: str | None, key: str | None, *, ray: bool) -> None:
    if ray and url:
        raise typer.BadParameter("give --url or --ray")
    chosen = settings()
    with _stoppable(), failing_kindly(), progress() as report:
        if ray:
            judge = _spread(order.request, chosen, report)
        else:
            judge = _judge(order.request, url, key, chosen, report)
        mark = run.run(order, judge, report, batch_tokens=chosen.max_batch_tokens or DEFAULT_BATCH_TOKENS)
    console.print(_summary(order, mark), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends the process there and then: what is written stands, and an exception could get lost."""

    def stop(_signal: int, _frame: object) -> None:
        console.show_cursor()
        console.print("stopped; the same command goes on from here")
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(
    question: ScoringRequest, exchange: Item, url: str | None, key: str | None, *, as_json: bool
) -> None:
    """One reward, as a picture or as JSON."""
    with failing_kindly():
        with progress() as report, _judge(question, url, key, settings(), report) as judge:
            [found] = judge.score(judge.prepare([(exchange,)]))
        if isinstance(found, SparseRMError):
            raise found
    if as_json:
        print(json.dumps(found[0]))  # noqa: T201 # the answer itself, for machines
    else:
        Console().print(waterfall(found[0]))


def _judge(
    question: ScoringRequest, url: str | None, key: str | None, chosen: Settings, report: Report
) -> AbstractContextManager[RowScorer]:
    if url:
        from app.offline.remote import open_remote_scorer

        return open_remote_scorer(question, url, key)
    from app.offline.local import open_local_scorer

    return open_local_scorer(question, chosen, report)


def _spread(question: ScoringRequest, chosen: Settings, report: Report) -> AbstractContextManager[RowScorer]:
    with needing_ray():
        from app.offline.ray_tasks import open_ray_scorer

    return open_ray_scorer(question, chosen, report)


def _summary(order: OfflineRunConfig, mark: RunCheckpoint) -> str:
    said = f"{mark.written_rows:,} rows in {order.output}"
    if mark.dropped_rows:
        said += f", {mark.dropped_rows:,} dropped"
    if mark.bad_rows:
        rows = "row" if mark.bad_rows == 1 else "rows"
        said += f"; {mark.bad_rows:,} bad {rows} in {RunFiles(order.output).bad_rows}, each with its reason"
    return said
