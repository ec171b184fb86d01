"""`python -m benchmarks.research.nameability`: tests whether people can name the features of a model.

`sheet` writes texts that express each feature; a first reader writes a name for each. `quiz` writes other
texts, from other prompts, half of which express the feature; a second reader sees the names and these texts
and says which of them fit. `score` compares the answers with what the features did. The two readers must be
different people. The files hold texts of the pairs, so they belong beside the data and not into a repository.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from app.cli import common
from app.data.pairs import hash_to_unit_interval, read_pairs
from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train import jobs
from app.train.features import extract_features
from app.train.selection import LatentSource
from app.types import HeadKind, Item, Pair, Progress
from benchmarks.research import options

NUM_FEATURES = 40
NUM_EVIDENCE = 12
"""Texts that a name is written from, besides as many that do not express the feature."""
NUM_QUESTIONS = 20
MAX_PROMPT_CHARACTERS = 300
MAX_RESPONSE_CHARACTERS = 900
MIN_NAME_ACCURACY = 0.75
app = typer.Typer(add_completion=False, help=__doc__)
ModelArgument = Annotated[str, typer.Argument(help="A reward model made by `sparserm train`.")]
PairsArgument = Annotated[str, typer.Argument(help="Pairs whose responses show what the features express.")]
OutArgument = Annotated[Path, typer.Argument(help="The file that is written.")]


@dataclass(frozen=True, slots=True)
class Responses:
    """Items with the activations of a model's features (N, K), and the half that each prompt is in."""

    items: list[Item]
    activations: Tensor
    in_first_half: np.ndarray[Any, np.dtype[np.bool_]]


@app.command()
def sheet(model: ModelArgument, pairs: PairsArgument, out: OutArgument) -> None:
    """Write the texts from which a reader names each feature; names go into the empty fields."""
    with common.exit_on_error(), common.show_progress() as progress:
        trained, responses = _read_responses(model, pairs, common.load_settings(), progress)
    rows = [
        {
            "feature": feature,
            "name": "",
            "expresses": _show(responses, _find_strongest(responses, feature, NUM_EVIDENCE, first=True)),
            "does_not": _show(responses, _find_silent(responses, feature, NUM_EVIDENCE, first=True)),
        }
        for feature in choose_features(trained)
    ]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@app.command()
def quiz(
    model: ModelArgument,
    pairs: PairsArgument,
    names: Annotated[Path, typer.Argument(help="The sheet with names filled in.")],
    out: OutArgument,
    key: Annotated[Path, typer.Argument(help="The file for the right answers.")],
) -> None:
    """Write a blind test of the names: texts of other prompts, half of which express the feature."""
    with common.exit_on_error(), common.show_progress() as progress:
        _, responses = _read_responses(model, pairs, common.load_settings(), progress)
    questions, answers = [], []
    for row in _read_rows(names):
        feature = row["feature"]
        strongest = _find_strongest(responses, feature, NUM_QUESTIONS // 2, first=False)
        silent = _find_silent(responses, feature, len(strongest), first=False)
        order = Random(feature).sample([*strongest, *silent], 2 * len(strongest))  # not a secret
        questions.append(
            {**{k: row[k] for k in ("feature", "name")}, "texts": _show(responses, order), "fits": []}
        )
        answers.append({"feature": feature, "fits": [index in set(strongest) for index in order]})
    for file, rows in ((out, questions), (key, answers)):
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@app.command()
def score(
    answered: Annotated[Path, typer.Argument(help="The quiz with `fits` filled in: true or false a text.")],
    key: Annotated[Path, typer.Argument(help="The file with the right answers.")],
) -> None:
    """Print the balanced accuracy of each name, and how many names are good enough."""
    right = {row["feature"]: row["fits"] for row in _read_rows(key)}
    scores = [
        (balanced_accuracy(row["fits"], right[row["feature"]]), row["feature"], row["name"])
        for row in _read_rows(answered)
    ]
    for value, feature, name in sorted(scores, reverse=True):
        print(f"{value:.2f}  {feature:3d}  {name}")
    good = sum(value >= MIN_NAME_ACCURACY for value, *_ in scores)
    print(f"{good} of {len(scores)} names have a balanced accuracy of at least {MIN_NAME_ACCURACY}")


def choose_features(model: RewardModel) -> list[int]:
    """Return the selected features, those with the largest weights first, at most NUM_FEATURES."""
    selected = [k for k, feature in enumerate(model.features) if feature.sign]
    if model.card.head_kind is HeadKind.LINEAR:
        weights = (model.head.w1[:, 0] * model.head.w2).mean(0).abs()
        selected.sort(key=lambda k: -float(weights[k]))
    return selected[:NUM_FEATURES]


def balanced_accuracy(answers: list[bool], right: list[bool]) -> float:
    """Return the mean of the shares of right answers among texts that fit and among those that do not."""
    correct = np.array(answers) == np.array(right)
    fits = np.array(right)
    return float((correct[fits].mean() + correct[~fits].mean()) / 2)


def _read_responses(
    name: str, pairs_file: str, settings: Settings, progress: Progress
) -> tuple[RewardModel, Responses]:
    model = bundle.load_bundle(settings.models_dir / name)
    pairs = read_pairs(pairs_file)
    extractor = jobs.load_feature_extractor(options.find_source(model.card, None), settings, progress)
    responses = [pair.items for pair in pairs]
    features = extract_features(
        responses, extractor, settings.cache, lambda done: progress("pairs", done / (2 * len(pairs)))
    )
    card = model.card
    source = LatentSource(model.dictionary, card.sae_input, card.layer, card.readout)
    activations = source.activations(features).flatten(0, 1)
    items = [item for row in responses for item in row]
    return model, Responses(items, activations, _mark_first_half(pairs))


def _mark_first_half(pairs: list[Pair]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    half = [hash_to_unit_interval(f"nameability/{pair.group}") < 1 / 2 for pair in pairs]
    return np.repeat(half, 2)


def _find_strongest(responses: Responses, feature: int, count: int, *, first: bool) -> list[int]:
    """Return the responses of one half that fire the feature most, at most one a prompt."""
    order = responses.activations[:, feature].argsort(descending=True).tolist()
    firing = [i for i in order if responses.activations[i, feature] > 0]
    return _take_one_a_prompt(responses, firing, count, first=first)


def _find_silent(responses: Responses, feature: int, count: int, *, first: bool) -> list[int]:
    """Return random responses of one half that do not fire the feature, at most one a prompt."""
    silent = torch.nonzero(responses.activations[:, feature] <= 0)[:, 0].tolist()
    Random(f"silent/{feature}").shuffle(silent)  # not a secret
    return _take_one_a_prompt(responses, silent, count, first=first)


def _take_one_a_prompt(responses: Responses, indices: list[int], count: int, *, first: bool) -> list[int]:
    taken: dict[tuple[Any, ...], int] = {}
    for index in indices:
        if responses.in_first_half[index] == first and len(taken) < count:
            taken.setdefault(responses.items[index].messages, index)
    return list(taken.values())


def _show(responses: Responses, indices: list[int]) -> list[dict[str, str]]:
    return [
        {
            "prompt": responses.items[i].messages[-1].content[-MAX_PROMPT_CHARACTERS:],
            "response": responses.items[i].response[:MAX_RESPONSE_CHARACTERS],
        }
        for i in indices
    ]


def _read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    app()
