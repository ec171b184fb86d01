"""`sparserm features` and `sparserm names`: evidence for features, and names that pass a blind test."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from app.cli.common import PAIRS_HELP, console, load_settings, require_extra, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.train.names.results import TestedName

features = typer.Typer(help="What the features of a reward model express.", no_args_is_help=True)
names = typer.Typer(help="Names of features: write, test and keep those that pass.", no_args_is_help=True)
KEY_VARIABLE = "SPARSERM_ENDPOINT_KEY"

ModelArgument = Annotated[str, typer.Argument(help="A reward model in the models folder.")]
SheetArgument = Annotated[
    Path, typer.Argument(help="A sheet with names filled in: JSON lines with latent, name and concept.")
]
ItemsOption = Annotated[int, typer.Option(min=20, help="Texts of each question; half of them fit.")]


@features.command("evidence")
def features_evidence(
    model: ModelArgument,
    pairs: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    test: Annotated[
        str | None,
        typer.Option(help="Pairs on which names are tested; by default half of the prompts of PAIRS."),
    ] = None,
    sae: Annotated[
        Path | None, typer.Option(help="Folder of the SAE, for models with features of tokens.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Use the first N pairs of PAIRS; 0 uses all.")] = 0,
    keep: Annotated[
        int,
        typer.Option(
            min=0, max=10,
            help="Put N short snippets a feature into the bundle. Only for texts that you may publish.",
        ),
    ] = 0,
) -> None:  # fmt: skip
    """Collect the responses that express each feature most, in the cache folder."""
    require_extra("train")
    from app.train.names import jobs

    settings = load_settings()
    with show_progress() as progress:
        folder = jobs.make_evidence(model, pairs, test, sae, settings, progress, limit=limit)
    console.print(f"evidence for {model} is in {folder}; it holds texts of the pairs", highlight=False)
    if keep:
        count = jobs.keep_snippets(model, keep, settings)
        console.print(f"{count} snippets are in the bundle of {model}", highlight=False)


@features.command("list")
def features_list(model: ModelArgument) -> None:
    """List a model's concepts and features with their names and the scores of the blind tests."""
    from app.reward import bundle

    loaded = bundle.load_bundle(load_settings().models_dir / model)
    concepts = Table("concept", "effect", "score", "features", title=f"{model}: concepts")
    for concept in loaded.concepts:
        score = "not tested" if concept.score is None else f"{concept.score:.2f} of {concept.items} texts"
        concepts.add_row(
            escape(concept.name), _format_effect(concept.sign), score, ", ".join(map(str, concept.latents))
        )
    table = Table("feature", "effect", Column("name", overflow="fold"), "score", title=f"{model}: features")
    for feature in loaded.features:
        score = "" if feature.label_score is None else f"{feature.label_score:.2f} "
        kind = f"of {feature.label_items} texts" if feature.label_items else "automatic"
        table.add_row(
            str(feature.latent),
            _format_effect(feature.sign),
            escape(feature.label or ""),
            score and score + kind,
        )
    Console().print(concepts, table)


@names.command("sheet")
def names_sheet(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Writes OUT.jsonl, and OUT.html to read and type in.")],
) -> None:
    """Write what someone who names the features needs; run `sparserm features evidence` first."""
    from app.reward import bundle
    from app.train.names import jobs, naming_sheet

    settings = load_settings()
    loaded = bundle.load_bundle(settings.models_dir / model)
    table, page = naming_sheet.write_sheet(loaded, jobs.read_evidence(loaded, settings), out)
    console.print(f"fill in `name` and `concept` in {table} or in {page}; then run", highlight=False)
    console.print(f"  sparserm names test {model} {table} TEST.jsonl", highlight=False)


@names.command("test")
def names_test(
    model: ModelArgument,
    sheet: SheetArgument,
    out: Annotated[Path, typer.Argument(help="The file of questions that is written.")],
    items: ItemsOption = 20,
    round_number: Annotated[
        int,
        typer.Option("--round", min=0, help="Each round has other texts, to test names again."),
    ] = 0,
) -> None:
    """Write a blind test of the names in a sheet; someone who did not write them answers it."""
    from app.reward import bundle
    from app.train.names import naming_sheet, results
    from app.train.names.evidence import evidence_folder

    settings = load_settings()
    loaded = bundle.load_bundle(settings.models_dir / model)
    names_by_latent, concepts = naming_sheet.read_sheet(sheet, loaded)
    count = results.write_test(
        loaded, evidence_folder(settings.cache, model), names_by_latent, concepts, out,
        items=items, round_number=round_number,
    )  # fmt: skip
    untested = len(names_by_latent) + len(concepts) - count
    if untested:
        console.print(f"{untested} names have too few responses to test them", highlight=False)
    console.print(f"{count} questions are in {out}. {results.TEST_INSTRUCTIONS} Then run", highlight=False)
    console.print(f"  sparserm names score {model} {out}", highlight=False)


@names.command("score")
def names_score(
    model: ModelArgument,
    answered: Annotated[list[Path], typer.Argument(help="Tests with `fits` filled in.")],
) -> None:
    """Score answered tests; names that pass go into the bundle, those that fail are removed from it."""
    require_extra("train")
    from app.train.names import jobs

    _print_scores(jobs.score_names(model, answered, load_settings()))


@names.command("auto")
def names_auto(
    model: ModelArgument,
    endpoint: Annotated[
        str, typer.Option(help="Base URL of an OpenAI-compatible API, such as http://127.0.0.1:8001/v1.")
    ],
    name_with: Annotated[str, typer.Option(help="The endpoint's model that writes the names.")],
    test_with: Annotated[
        str | None, typer.Option(help="The model that answers the test; another one is better.")
    ] = None,
    items: ItemsOption = 20,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the calls are made.")] = False,
) -> None:
    """Name, group and test all features with language models; the key is read from SPARSERM_ENDPOINT_KEY.

    The texts of the evidence are sent to the endpoint. Answers are kept, so a killed run resumes.
    """
    require_extra("train")
    import httpx

    from app.reward import bundle
    from app.train.names import endpoint as endpoints
    from app.train.names import jobs
    from app.train.names.evidence import evidence_folder

    settings = load_settings()
    loaded = bundle.load_bundle(settings.models_dir / model)
    cost = endpoints.estimate_cost(jobs.read_evidence(loaded, settings), items)
    estimate = f"about {cost['calls']} calls with {cost['input_tokens']:,} input tokens"
    console.print(f"{estimate} to {endpoint}", highlight=False)
    yes or typer.confirm("Continue?", abort=True)
    store = evidence_folder(settings.cache, model) / "endpoint.jsonl"
    key = os.environ.get(KEY_VARIABLE, "").strip()
    with httpx.Client(timeout=endpoints.TIMEOUT_S) as client, show_progress() as progress:
        naming, testing = (
            endpoints.ChatEndpoint(endpoint, chat_model, store, client, key)
            for chat_model in (name_with, test_with or name_with)
        )
        scored = jobs.name_automatically(model, naming, testing, settings, progress, items=items)
    _print_scores(scored)


@names.command("neuronpedia")
def names_neuronpedia(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The sheet that is written, for `sparserm names test`.")],
    files: Annotated[
        list[Path] | None, typer.Option("--file", help="Files of an export, instead of downloading it.")
    ] = None,
) -> None:
    """Take names of a public SAE's latents from Neuronpedia; test them as any other names."""
    require_extra("train")
    from app.reward import bundle
    from app.train.names import jobs

    loaded = bundle.load_bundle(load_settings().models_dir / model)
    count = jobs.write_neuronpedia_sheet(loaded, files or [], out)
    console.print(
        f"{count} of {len(loaded.features)} features have a name in {escape(str(out))}", highlight=False
    )


def _print_scores(scored: "Sequence[TestedName]") -> None:
    table = Table("score", "at least", "texts", Column("name", overflow="fold"), "passed")
    for tested in scored:
        score = tested.score
        table.add_row(
            f"{score.accuracy:.2f}", f"{score.lower_bound:.2f}", str(score.items), escape(tested.name),
            "yes" if score.passed else "no",
        )  # fmt: skip
    Console().print(table)
    num_passed = sum(tested.score.passed for tested in scored)
    console.print(f"{num_passed} of {len(scored)} names passed", highlight=False)


def _format_effect(sign: int) -> str:
    return {1: "raises", -1: "lowers"}.get(sign, "")
