"""`sparserm align` and `sparserm refit`: align a policy, and retrain a reward model's head."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.common import (
    PAIRS_HELP,
    BadRowPolicy,
    console,
    load_settings,
    require_extra,
    show_progress,
)
from app.cli.offline import KeyOption, UrlOption
from app.offline.remote import reload_model
from app.types import Progress

app = typer.Typer()
ConfigArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.toml]", help="Configuration file; options on the command line win."),
]
OutOption = Annotated[
    Path, typer.Option(help="Folder of the run: every round's data and adapter, and the report.")
]
PromptsOption = Annotated[str | None, typer.Option(help="Pairs or prompts to train on.")]
TestOption = Annotated[str | None, typer.Option(help="Pairs to evaluate on; never trained on.")]
ModelOption = Annotated[str | None, typer.Option(help="Reward model that filters the pairs.")]
HeldOutOption = Annotated[
    str | None, typer.Option(help="Second reward model that only monitors reward hacking.")
]
PolicyOption = Annotated[str | None, typer.Option(help="Language model to align: name or folder.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="Source of the preferences: self (the policy), data or reward.")
]
RoundsOption = Annotated[int | None, typer.Option(help="Maximum number of rounds.")]
PerRoundOption = Annotated[int | None, typer.Option(help="Prompts per round.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of all random choices.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the configuration."),
]
RefreshOption = Annotated[
    str | None,
    typer.Option(help="Pairs that may grow during the run; the reward model is refitted with them."),
]
KnownPairsOption = Annotated[
    str | None, typer.Option("--known-pairs", help="With --refresh: the pairs the model was trained on.")
]


@app.command()
def align(
    config_file: ConfigArgument = None,
    *,
    out: OutOption,
    prompts: PromptsOption = None,
    test: TestOption = None,
    model: ModelOption = None,
    held_out: HeldOutOption = None,
    policy: PolicyOption = None,
    labels: LabelsOption = None,
    rounds: RoundsOption = None,
    per_round: PerRoundOption = None,
    seed: SeedOption = None,
    assignments: SetOption = None,
    refresh: RefreshOption = None,
    known_pairs: KnownPairsOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Align a language model with a reward model by online DPO; an interrupted run resumes.

    A round samples responses, labels them, drops the pairs that the reward model disagrees with, trains by
    DPO with LoRA, and evaluates. The run stops if the reward is being hacked.
    """
    options = {
        "prompts": prompts, "test": test, "model": model, "held_out": held_out, "policy": policy,
        "labels": labels, "rounds": rounds, "per_round": per_round, "seed": seed,
        **_parse_assignments(assignments),
    }  # fmt: skip
    require_extra("align")
    require_extra("train")
    from app.align.config import read_config
    from app.align.run import run_alignment

    config = read_config(config_file, **options)
    with show_progress() as progress:
        on_round_end = _make_refresher(config.model, known_pairs, refresh, url, key, progress)
        run_alignment(config, out, load_settings(), progress, on_round_end=on_round_end, url=url, key=key)
    Console().print((out / "report.md").read_text(), highlight=False, markup=False)


@app.command()
def refit(
    model: Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")],
    known: Annotated[str, typer.Argument(metavar="KNOWN", help="The pairs the model was trained on.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help=PAIRS_HELP)],
    data_license: Annotated[str, typer.Option("--license", help="License of the new pairs.")] = "not stated",
    bad: Annotated[
        BadRowPolicy, typer.Option(help="What to do about rows that cannot be parsed.")
    ] = BadRowPolicy.STOP,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Train a reward model's head again with additional pairs; its directions stay the same.

    With --url, a server that uses the same models folder reloads the model.
    """
    with show_progress() as progress:
        _refit(model, known, new, data_license, bad, progress)
        if url:
            reload_model(url, key, model)
    console.print(
        f"{model} was trained again with {new}; its report still describes the earlier model",
        highlight=False, markup=False,
    )  # fmt: skip


def _refit(
    model: str, known: str, new: str, data_license: str, bad: BadRowPolicy, progress: Progress
) -> None:
    from app.data.pairs import read_pairs, source_sha256
    from app.evaluate.suites.limitation_pairs import FOLDER, read_limitations
    from app.reward.reward_model import TrainingData
    from app.train import refit

    known_pairs, new_pairs = (read_pairs(source, bad.error_handler) for source in (known, new))
    data = TrainingData(Path(new).name, source_sha256(new), len(new_pairs), data_license)
    refit.refit(
        model, known_pairs, new_pairs, data, settings=load_settings(), progress=progress,
        limitations=read_limitations(FOLDER),
    )  # fmt: skip


def _make_refresher(
    model: str,
    known: str | None,
    new: str | None,
    url: str | None,
    key: str | None,
    progress: Progress,
) -> Callable[[int], None]:
    """Return the function to call after a round: it refits the model if the new pairs have changed."""
    if new is None:
        return lambda _: None
    if known is None:
        raise typer.BadParameter("--refresh needs --known-pairs")
    from app.data.pairs import source_sha256

    refitted_digests: set[str] = set()

    def refit_if_changed(_: int) -> None:
        digest = source_sha256(new)
        if digest not in refitted_digests:
            _refit(model, known, new, "not stated", BadRowPolicy.STOP, progress)
            refitted_digests.add(digest)
            if url:
                reload_model(url, key, model)

    return refit_if_changed


def _parse_assignments(assignments: list[str] | None) -> dict[str, str]:
    """Parse NAME=VALUE strings."""
    parts = [assignment.partition("=") for assignment in assignments or ()]
    return {name: value for name, _, value in parts}
