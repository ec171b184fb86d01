"""What the commands `sparserm features` and `sparserm names` do, from files and settings."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from app.data.pairs import read_json_lines, read_pairs
from app.evaluate import report as reports
from app.reward import bundle
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train.feature_cache import write_atomically
from app.train.features import extract_features
from app.train.jobs import load_model_extractor
from app.train.names import endpoint, naming_sheet, neuronpedia, results
from app.train.names.blind_test import NUM_ITEMS
from app.train.names.evidence import (
    Evidence,
    collect_evidence,
    evidence_folder,
    load_evidence,
    save_evidence,
)
from app.train.names.responses import ResponseTable
from app.types import Progress

MAX_SNIPPET_CHARACTERS = 160


def make_evidence(
    name: str,
    pairs_source: str,
    test_source: str | None,
    sae_folder: Path | None,
    settings: Settings,
    progress: Progress,
    *,
    limit: int = 0,
) -> Path:
    """Collect the evidence for a model's features from pairs, and return its folder.

    Names are tested on responses to the prompts of `test_source`, or else to half of the prompts.
    """
    model = bundle.load_bundle(settings.models_dir / name)
    pairs = read_pairs(pairs_source)
    pairs = pairs[: limit or len(pairs)]
    test_pairs = read_pairs(test_source) if test_source else []
    num_named = len(pairs) if test_pairs else None
    pairs = [*pairs, *test_pairs]
    extractor = load_model_extractor(model, sae_folder, settings, progress)
    features = extract_features(
        [pair.items for pair in pairs], extractor, settings.cache,
        lambda done: progress("pairs", min(done / (2 * len(pairs)), 1)),
    )  # fmt: skip
    table = ResponseTable.from_features(model, pairs, features, num_named=num_named)
    evidence = collect_evidence(model, pairs, table, extractor, progress)
    folder = evidence_folder(settings.cache, name)
    table.save(folder)
    save_evidence(evidence, folder)
    return folder


def keep_snippets(name: str, count: int, settings: Settings) -> int:
    """Put the beginnings of the responses that express each feature most into the bundle; return how many."""
    folder = settings.models_dir / name
    model = bundle.load_bundle(folder)
    evidence = load_evidence(evidence_folder(settings.cache, name), model)
    snippets = {
        feature.latent: tuple(
            " ".join(context.text.response.split())[:MAX_SNIPPET_CHARACTERS]
            for context in feature.strongest[:count]
        )
        for feature in evidence.features
    }
    features = tuple(replace(f, snippets=snippets.get(f.latent, ())) for f in model.features)
    bundle.save_names(replace(model, features=features), folder)
    return sum(map(len, snippets.values()))


def score_names(name: str, files: Sequence[Path], settings: Settings) -> list[results.TestedName]:
    """Score answered tests; write what passed into the bundle, and all scores into its report."""
    return save_scores(name, results.read_answers(files), settings)


def save_scores(name: str, answered: list[dict[str, Any]], settings: Settings) -> list[results.TestedName]:
    """Score answered questions; write what passed into the bundle, and all scores into its report."""
    folder = settings.models_dir / name
    model, scored = results.score_test(
        bundle.load_bundle(folder), evidence_folder(settings.cache, name), answered
    )
    bundle.save_names(model, folder)
    if (folder / "report.json").exists():
        earlier = reports.read(folder).get("named", {}).get("names", [])
        reports.update(folder, model.card, {"named": results.describe_results(scored, earlier)})
    return scored


def name_automatically(
    name: str,
    naming: endpoint.ChatEndpoint,
    testing: endpoint.ChatEndpoint,
    settings: Settings,
    progress: Progress,
    *,
    items: int = NUM_ITEMS,
) -> list[results.TestedName]:
    """Name all features, group them into concepts, test both, and write what passed into the bundle."""
    folder = evidence_folder(settings.cache, name)
    model = bundle.load_bundle(settings.models_dir / name)
    names = endpoint.write_names(load_evidence(folder, model), naming, lambda done: progress("names", done))
    concepts = endpoint.group_into_concepts(model, names, naming)
    file = folder / "endpoint_test.jsonl"
    file.unlink(missing_ok=True)
    results.write_test(model, folder, names, concepts, file, items=items, round_number=0)
    questions = [row for _, row in read_json_lines(file)]
    answered = endpoint.answer_test(questions, testing, lambda done: progress("tests", done))
    return save_scores(name, answered, settings)


def read_evidence(model: RewardModel, settings: Settings) -> Evidence:
    """Return the evidence for a model."""
    return load_evidence(evidence_folder(settings.cache, model.card.name), model)


def write_neuronpedia_sheet(model: RewardModel, files: Sequence[Path], out: Path) -> int:
    """Write a sheet with the names of an SAE's latents on Neuronpedia; return how many there are."""
    naming_sheet.refuse_existing(out)
    if files:
        names = neuronpedia.read_names(model, files)
    else:
        with httpx.Client(timeout=neuronpedia.TIMEOUT_S) as client:
            names = neuronpedia.fetch_names(model, client)
    rows = ({"latent": latent, "name": name} for latent, name in names.items())
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(names)
