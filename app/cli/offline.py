"""`sparserm score`, `compare`, `filter` and `rank`: process a data set, or score one response."""

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

from app.cli.common import PAIRS_HELP, console, load_settings, require_extra, show_progress
from app.cli.waterfall import render_waterfall
from app.errors import SparseRMError
from app.offline.checkpoint import RunCheckpoint, RunFiles
from app.offline.chunks import DEFAULT_BATCH_TOKENS
from app.offline.run import OfflineRunConfig, run_offline
from app.offline.scorers import RowScorer, ScoringRequest
from app.offline.tasks import COMPARE, RANK, SCORE, PairFilter, filter_task
from app.settings import Settings
from app.types import Item, Message, Progress

app = typer.Typer()
EXIT_CODE_INTERRUPTED = 130
SOURCE_HELP = "JSONL (or .gz), parquet, or hub:ORG/NAME with optional :CONFIG, @REVISION and #SPLIT."
ITEMS_HELP = f"{SOURCE_HELP} Rows have prompt or messages, and response, or messages that end with it."
CANDIDATES_HELP = f"{SOURCE_HELP} Rows have prompt or messages, and responses, a list."
OUTPUT_HELP = "Output file, .jsonl or .parquet: the rows with new columns."
OutputArgument = Annotated[Path, typer.Argument(metavar="OUT", help=OUTPUT_HELP)]
PairsArgument = Annotated[str, typer.Argument(metavar="IN", help=PAIRS_HELP)]
ModelOption = Annotated[str, typer.Option(help="A reward model, a composite, or MODEL@PROFILE.")]
UrlOption = Annotated[
    str | None,
    typer.Option(help="Use a server, such as http://127.0.0.1:8000, instead of loading the model."),
]
KeyOption = Annotated[str | None, typer.Option(envvar="SPARSERM_KEY", help="API key for that server.")]
RayOption = Annotated[
    bool,
    typer.Option("--ray", help="Score on a Ray cluster: SPARSERM_WORKERS engines, or one per GPU if more."),
]
TopKOption = Annotated[int, typer.Option(min=0, max=1000, help="Number of features to list.")]
LengthControlOption = Annotated[
    bool, typer.Option("--length-control", help="Remove from each reward what its length explains.")
]
PrefixOption = Annotated[str, typer.Option(help="Prefix of the names of the new columns.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start again instead of resuming an earlier run.")]


@app.command()
def score(
    source: Annotated[str | None, typer.Argument(metavar="IN", help=ITEMS_HELP)] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help=OUTPUT_HELP)] = None,
    *,
    model: ModelOption,
    prompt: Annotated[str | None, typer.Option(help="A prompt, instead of IN and OUT.")] = None,
    response: Annotated[str | None, typer.Option(help="The response to that prompt.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the reward of that response as the HTTP API returns it.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    ray: RayOption = False,
    top_k: TopKOption = 5,
    length_control: LengthControlOption = False,
    prefix: PrefixOption = "",
    strict: StrictOption = False,
    fresh: FreshOption = False,
) -> None:
    """Score the rows of a data set, or one response and show how its reward adds up.

    New columns: reward, uncertainty, percentile, distance, truncated, features, why, coverage, concepts.
    Bad rows are written to a file beside OUT, each with the reason.
    Run the same command again to resume an interrupted run.
    """
    request = ScoringRequest(model, top_k, length_control=length_control)
    if source and out and prompt is None and response is None and not as_json:
        config = OfflineRunConfig(SCORE, request, source, out, prefix, strict=strict, fresh=fresh)
        _run(config, url, key, ray=ray)
    elif prompt is not None and response is not None and source is None:
        _show(request, Item((Message("user", prompt),), response), url, key, as_json=as_json)
    else:
        raise typer.BadParameter("give IN and OUT, or --prompt and --response")


@app.command()
def compare(
    source: PairsArgument,
    out: OutputArgument,
    *,
    model: ModelOption,
    url: UrlOption = None,
    key: KeyOption = None,
    ray: RayOption = False,
    top_k: TopKOption = 5,
    length_control: LengthControlOption = False,
    prefix: PrefixOption = "",
    strict: StrictOption = False,
    fresh: FreshOption = False,
) -> None:
    """Compare the two responses of each pair: which is better, how probably, and because of which features.

    New columns: margin, probability, chosen_reward, rejected_reward, uncertainty, distance,
    truncated, features, and with features also why, coverage and concepts.
    Bad rows are written to a file beside OUT, each with the reason.
    Run the same command again to resume an interrupted run.
    """
    request = ScoringRequest(model, top_k, length_control=length_control, paired=True)
    config = OfflineRunConfig(COMPARE, request, source, out, prefix, strict=strict, fresh=fresh)
    _run(config, url, key, ray=ray)


@app.command("filter")
def filter_pairs(
    source: PairsArgument,
    out: OutputArgument,
    *,
    model: ModelOption,
    min_margin: Annotated[float, typer.Option(help="Minimum margin of the chosen response.")] = 0.0,
    max_uncertainty: Annotated[float, typer.Option(help="Maximum uncertainty of the margin.")] = inf,
    max_distance: Annotated[
        float, typer.Option(min=0, max=100, help="Maximum distance from the training data (percentile).")
    ] = 100.0,
    url: UrlOption = None,
    key: KeyOption = None,
    ray: RayOption = False,
    length_control: LengthControlOption = False,
    prefix: PrefixOption = "",
    strict: StrictOption = False,
    fresh: FreshOption = False,
) -> None:
    """Drop the pairs a reward model disagrees with: by default those whose rejected response scores higher.

    The SparseRM paper filters the pairs of online DPO this way.
    New columns: those of `compare` without features.
    Bad rows are written to a file beside OUT, each with the reason.
    Run the same command again to resume an interrupted run.
    """
    request = ScoringRequest(model, 0, length_control=length_control, paired=True)
    task = filter_task(PairFilter(min_margin, max_uncertainty, max_distance))
    config = OfflineRunConfig(task, request, source, out, prefix, strict=strict, fresh=fresh)
    _run(config, url, key, ray=ray)


@app.command()
def rank(
    source: Annotated[str, typer.Argument(metavar="IN", help=CANDIDATES_HELP)],
    out: OutputArgument,
    *,
    model: ModelOption,
    url: UrlOption = None,
    key: KeyOption = None,
    ray: RayOption = False,
    top_k: TopKOption = 5,
    length_control: LengthControlOption = False,
    prefix: PrefixOption = "",
    strict: StrictOption = False,
    fresh: FreshOption = False,
) -> None:
    """Rank the responses of each row; the best becomes `chosen`, the worst `rejected`.

    New columns: chosen, rejected, margin, order (best first), rewards, uncertainties, distances,
    truncated, features (of the best).
    Bad rows are written to a file beside OUT, each with the reason.
    Run the same command again to resume an interrupted run.
    """
    request = ScoringRequest(model, top_k, length_control=length_control)
    config = OfflineRunConfig(RANK, request, source, out, prefix, strict=strict, fresh=fresh)
    _run(config, url, key, ray=ray)


def _run(config: OfflineRunConfig, url: str | None, key: str | None, *, ray: bool) -> None:
    if ray and url:
        raise typer.BadParameter("give --url or --ray, not both")
    settings = load_settings()
    with _exit_on_interrupt(), show_progress() as progress:
        if ray:
            scorer = _open_ray_scorer(config.request, settings, progress)
        else:
            scorer = _open_scorer(config.request, url, key, settings, progress)
        batch_tokens = settings.max_batch_tokens or DEFAULT_BATCH_TOKENS
        checkpoint = run_offline(config, scorer, progress, batch_tokens=batch_tokens)
    console.print(_summarize(config, checkpoint), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _exit_on_interrupt() -> Iterator[None]:
    """Make Ctrl-C end the process at once.

    Rows that are already written are kept. Other code could catch an exception, but not an exit.
    """

    def stop(_signal: int, _frame: object) -> None:
        console.show_cursor()
        console.print("stopped; run the same command again to resume")
        os._exit(EXIT_CODE_INTERRUPTED)

    previous_handler = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _show(request: ScoringRequest, item: Item, url: str | None, key: str | None, *, as_json: bool) -> None:
    """Print the reward of one item as a chart or as JSON."""
    with (
        show_progress() as progress,
        _open_scorer(request, url, key, load_settings(), progress) as scorer,
    ):
        [result] = scorer.score(scorer.prepare([(item,)]))
    if isinstance(result, SparseRMError):
        raise result
    if as_json:
        print(json.dumps(result[0]))  # noqa: T201 # the result itself, for machines
    else:
        Console().print(render_waterfall(result[0]))


def _open_scorer(
    request: ScoringRequest, url: str | None, key: str | None, settings: Settings, progress: Progress
) -> AbstractContextManager[RowScorer]:
    if url:
        from app.offline.remote import open_remote_scorer

        return open_remote_scorer(request, url, key)
    from app.offline.local import open_local_scorer

    return open_local_scorer(request, settings, progress)


def _open_ray_scorer(
    request: ScoringRequest, settings: Settings, progress: Progress
) -> AbstractContextManager[RowScorer]:
    require_extra("ray")
    from app.offline.ray_tasks import open_ray_scorer

    return open_ray_scorer(request, settings, progress)


def _summarize(config: OfflineRunConfig, checkpoint: RunCheckpoint) -> str:
    summary = f"{checkpoint.written_rows:,} rows in {config.output}"
    if checkpoint.dropped_rows:
        summary += f", {checkpoint.dropped_rows:,} dropped"
    if checkpoint.bad_rows:
        rows = "row" if checkpoint.bad_rows == 1 else "rows"
        summary += f"; {checkpoint.bad_rows:,} bad {rows} in {RunFiles(config.output).bad_rows}"
        summary += ", each with its reason"
    return summary
