"""Accuracy of a bundle on preference pairs, scored by the same engine that serves it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from app.backbone.packing import split_into_batches
from app.data.pairs import match_condition
from app.errors import NonFiniteScore
from app.evaluate.accuracy import ScoredPairs, evaluate_pairs
from app.reward import bundle, loading
from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.settings import Settings
from app.types import Explain, Item, Pair, Progress, ScoreJob, ScoreOptions

MAX_BATCH_TOKENS = 4096


def evaluate_bundle(
    folder: Path, pairs: list[Pair], slices: tuple[str, ...], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Return all measurements of a bundle on the pairs, and its accuracy with length control.

    `slices` are conditions on the pairs' attributes, such as kind=generated.
    """
    engine, name = load_engine(folder, settings, progress)
    model = engine.models[name]
    masks = {condition: match_condition(pairs, condition) for condition in slices}
    scores = score_items(engine, name, unique_items(pairs), progress)
    scored_pairs = build_scored_pairs(engine, pairs, scores)
    return {
        "model": name,
        **evaluate_pairs(scored_pairs, model.card.temperature, masks),
        "length_controlled": evaluate_length(apply_length_control(scored_pairs, model)),
    }


def load_engine(folder: Path, settings: Settings, progress: Progress) -> tuple[Engine, str]:
    """Return an engine that holds only the bundle in a folder, verified by its probes, and its name."""
    model = bundle.load_bundle(folder)
    backbone, text = loading.load_backbone(model.card.backbone, model.card.layer, settings, progress)
    engine = Engine(backbone, text, {model.card.name: model})
    engine.verify()
    return engine, model.card.name


def unique_items(pairs: Iterable[Pair]) -> list[Item]:
    """Return the items of all pairs without duplicates, in order of first occurrence."""
    return list(dict.fromkeys(item for pair in pairs for item in pair.items))


def score_items(
    engine: Engine,
    name: str,
    items: list[Item],
    progress: Progress,
    stage: str = "scoring",
    *,
    explain: Explain = Explain.NONE,
) -> dict[Item, Score]:
    """Return the score of each item; an item with a non-finite score raises its error."""
    encoded = engine.encode(items)
    scores: dict[Item, Score] = {}
    for batch in split_into_batches([item.ids for item in encoded], MAX_BATCH_TOKENS):
        jobs = [ScoreJob(encoded[i], ScoreOptions((name,), explain)) for i in batch]
        for i, scored in zip(batch, engine.score(jobs), strict=True):
            if isinstance(scored, NonFiniteScore):
                raise scored
            scores[items[i]] = scored.scores[0]
        progress(stage, len(scores) / len(items))
    return scores


def build_scored_pairs(engine: Engine, pairs: list[Pair], scores: Mapping[Item, Score]) -> ScoredPairs:
    """Return the pairs with the rewards and token counts of their responses."""
    encoded_items = zip(scores, engine.encode(list(scores)), strict=True)
    lengths = {item: encoded.response_end - encoded.response_start for item, encoded in encoded_items}
    rewards = torch.tensor([[scores[item].reward for item in pair.items] for pair in pairs]).double()
    token_counts = torch.tensor([[lengths[item] for item in pair.items] for pair in pairs])
    return ScoredPairs(rewards, token_counts, [pair.group for pair in pairs])


def apply_length_control(pairs: ScoredPairs, model: RewardModel) -> ScoredPairs:
    """Return the pairs with the model's length correction added to their rewards."""
    correction = model.calibration.compute_length_correction(pairs.token_counts)
    return replace(pairs, rewards=pairs.rewards + correction.cpu())


def evaluate_length(pairs: ScoredPairs) -> dict[str, Any]:
    """Return the accuracy and how it depends on length."""
    results = evaluate_pairs(pairs, 1.0, {})
    return {key: results[key] for key in ("accuracy", "ci_low", "ci_high", "n", "length")}


def render_table(results: dict[str, Any]) -> Table:
    """Render the results of `evaluate_bundle` for a terminal."""
    table = Table("subset", "accuracy", "95 % interval", "pairs", title=results["model"])
    length = results["length"]
    subsets = {
        "all": results,
        **results["slices"],
        "chosen is longer": length["chosen_longer"],
        "chosen is shorter": length["chosen_shorter"],
    }
    for name, row in subsets.items():
        if row:
            interval = f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
            table.add_row(name, f"{row['accuracy']:.3f}", interval, str(row["n"]))
    table.caption = (
        f"calibration error {results['ece']:.3f}, Brier score {results['brier']:.3f}, "
        f"correlation of reward and length within a prompt {length['spearman']:+.2f}"
    )
    return table
