"""`sparserm align` and `sparserm refit`: a policy and its reward model, round by round."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.common import (
    DEFAULT_SAE,
    PAIRS_HELP,
    OnBad,
    Report,
    console,
    failing_kindly,
    progress,
    settings,
)
from app.cli.offline import Key, Url
from app.offline.remote import reload_model

app = typer.Typer()


@app.command()
def align(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A plan; options below go before it.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run: every round's data, adapter and figures.")],
    prompts: Annotated[str | None, typer.Option(help="Pairs or prompts to learn from.")] = None,
    test: Annotated[str | None, typer.Option(help="Pairs to measure on; never learnt from.")] = None,
    model: Annotated[str | None, typer.Option(help="The reward model that filters.")] = None,
    held_out: Annotated[str | None, typer.Option(help="A second one that only watches.")] = None,
    policy: Annotated[str | None, typer.Option(help="Language model to align: name or folder.")] = None,
    labels: Annotated[str | None, typer.Option(help="self, data or reward: who prefers.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds at most.")] = None,
    per_round: Annotated[int | None, typer.Option(help="Prompts of a round.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other choice of a plan.")
    ] = None,
    refresh: Annotated[
        str | None,
        typer.Option(help="Pairs that may grow while this runs; the reward model learns from them, too."),
    ] = None,
    learnt: Annotated[str | None, typer.Option(help="With --refresh: the pairs it was trained on.")] = None,
    sae: Annotated[Path, typer.Option(help="With --refresh: folder of the model's SAE.")] = DEFAULT_SAE,
    url: Url = None,
    key: Key = None,
) -> None:
    """Align a language model with a reward model in the loop; goes on where it was killed.

    A round draws responses, has them labelled, drops pairs the reward model disagrees with, learns by DPO
    with LoRA, and measures. It stops when the reward is being hacked.
    """
    from app.align import config as plans
    from app.align import run

    with failing_kindly():
        given = {
            "prompts": prompts, "test": test, "model": model, "held_out": held_out, "policy": policy,
            "labels": labels, "rounds": rounds, "per_round": per_round, "seed": seed, **_set(choices),
        }  # fmt: skip
        found = plans.read_config(plan, **given)
        with progress() as report:
            renewing = _refresher(found.model, learnt, refresh, sae, url, key, report)
            run.run(found, out, settings(), report, refresh=renewing, url=url, key=key)
    Console().print((out / "report.md").read_text(), highlight=False, markup=False)


@app.command()
def refit(
    model: Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")],
    known: Annotated[str, typer.Argument(metavar="KNOWN", help="The pairs it was trained on.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help=PAIRS_HELP)],
    data_license: Annotated[str, typer.Option("--license", help="License of the new pairs.")] = "not stated",
    sae: Annotated[Path, typer.Option(help="Folder of the SAE it was made from.")] = DEFAULT_SAE,
    bad: Annotated[OnBad, typer.Option(help="What to do about rows that cannot be read.")] = OnBad.STOP,
    url: Url = None,
    key: Key = None,
) -> None:
    """Learn a reward model's head again with more pairs, over the same directions; a server reloads it."""
    with failing_kindly(), progress() as report:
        _refit(model, known, new, data_license, sae, bad, report)
        if url:
            reload_model(url, key, model)
    console.print(f"{model} has learnt from {new}; its report is of before", highlight=False)


def _refit(model: str, known: str, new: str, terms: str, sae: Path, bad: OnBad, report: Report) -> None:
    from app.data import pairs
    from app.reward.reward_model import TrainingData
    from app.train import refit as room

    chosen = settings()
    before, found = (pairs.read_pairs(one, bad.reporter) for one in (known, new))
    data = TrainingData(Path(new).name, pairs.source_sha256(new), len(found), terms)
    room.refit(model, before, found, data, sae=sae, settings=chosen, progress=report)


def _refresher(
    model: str,
    known: str | None,
    new: str | None,
    sae: Path,
    url: str | None,
    key: str | None,
    report: Report,
) -> Callable[[int], None]:
    """After a round: learn from the new pairs, if they have changed since."""
    if new is None:
        return lambda _: None
    if known is None:
        raise typer.BadParameter("--refresh needs --learnt")
    from app.data.pairs import source_sha256

    seen: set[str] = set()

    def refresh(_: int) -> None:
        digest = source_sha256(new)
        if digest not in seen:
            _refit(model, known, new, "not stated", sae, OnBad.STOP, report)
            seen.add(digest)
            if url:
                reload_model(url, key, model)

    return refresh


def _set(choices: list[str] | None) -> dict[str, str]:
    """NAME=VALUE as a plan reads it."""
    parts = [one.partition("=") for one in choices or ()]
    return {name: value for name, _, value in parts}
