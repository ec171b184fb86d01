"""The audit of a bundle: explanations, contrasts, uncertainty, calibration, length control and steering."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.backbone.packing import pack, split_into_batches
from app.evaluate import accuracy_run, report
from app.evaluate.accuracy import ScoredPairs, expected_calibration_error, predict_both_orders
from app.evaluate.audit import contrasts, faithfulness, out_of_distribution, steering, uncertainty
from app.reward.engine import Engine
from app.reward.passages import ResponseSpans, build_spans, find_passages
from app.reward.pooling import mean_pool, pooled_span
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.settings import Settings
from app.types import Item, Pair, Progress

CPU = torch.device("cpu")
MAX_EXPLAINED_RESPONSES = 200
MAX_OUT_OF_DISTRIBUTION_PROMPTS = 100


def audit_bundle(
    folder: Path, pairs: list[Pair], shifted: list[Pair], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Measure everything, add it to the bundle's report and return it.

    `shifted` are pairs from another distribution than the training pairs; they may be empty.
    """
    engine, name = accuracy_run.load_engine(folder, settings, progress)
    model = engine.models[name].to(CPU)
    items = accuracy_run.unique_items(pairs)
    scores = accuracy_run.score_items(engine, name, items, progress, "test pairs")
    rng = Random(0)  # noqa: S311 # reproducible sampling, not a secret
    sample = rng.sample(items, min(MAX_EXPLAINED_RESPONSES, len(items)))
    scored_pairs = accuracy_run.build_scored_pairs(engine, pairs, scores)
    results = {
        **_evaluate_scores(model, pairs, scored_pairs, scores),
        "explanations": faithfulness.evaluate_faithfulness(
            model, *pool_spans(engine, name, sample, progress)
        ),
        "strangers": _evaluate_out_of_distribution(engine, name, sample, scores, progress),
    }
    if shifted:
        shifted_pairs = _score_pairs(engine, name, shifted, progress)
        results["calibration"]["shifted"] = _calibration_error(shifted_pairs, model)
    report.update(folder, model.card, {"verified": results})
    return results


@torch.inference_mode()
def pool_spans(
    engine: Engine, name: str, items: list[Item], progress: Progress
) -> tuple[ResponseSpans, Tensor]:
    """Return the spans of responses that a model reads, and the residual stream pooled in each, (W, D)."""
    card = engine.models[name].card
    encoded = engine.encode(items)
    passages = [find_passages(item, item.response_turn, card.passages) for item in encoded]
    pooled: list[Tensor] = [torch.empty(0)] * len(encoded)
    token_counts = [0] * len(encoded)
    done = 0
    for batch in split_into_batches([item.ids for item in encoded], accuracy_run.MAX_BATCH_TOKENS):
        packed = pack([encoded[i].ids for i in batch])
        pooled_spans = [pooled_span(card.readout, encoded[i].response_turn) for i in batch]
        rows = [packed.rows(index, *span) for index, span in enumerate(pooled_spans)]
        layer = engine.backbone.residuals(packed, {card.layer: np.concatenate(rows)})[card.layer]
        for i, item_rows in zip(batch, rows, strict=True):
            pooled[i], token_counts[i] = _pool_response(layer.at(item_rows), passages[i]), len(item_rows)
        done += len(batch)
        progress("residuals", done / len(encoded))
    whole, further = [means[:1] for means in pooled], [means[1:] for means in pooled]
    return build_spans(token_counts, passages, CPU), torch.cat([*whole, *further])


def _pool_response(residuals: Tensor, passages: list[tuple[int, int]]) -> Tensor:
    """Return the means of a response's residuals (T, D) over the whole and over each passage, (1 + P, D)."""
    spans = build_spans([len(residuals)], [passages], residuals.device)
    whole = mean_pool(residuals, [len(residuals)])
    return torch.cat([whole, spans.pool_passages(residuals).to(whole)]).cpu()


def stack_projections(scores: list[Score]) -> tuple[Tensor, Tensor]:
    """Return the projections and the activations of scored responses, (B, K) each."""
    return (
        torch.from_numpy(np.stack([score.projections for score in scores])),
        torch.from_numpy(np.stack([score.activations for score in scores])),
    )


def _evaluate_scores(
    model: RewardModel, pairs: list[Pair], scored_pairs: ScoredPairs, scores: dict[Item, Score]
) -> dict[str, Any]:
    """Return the measurements that need only the scores of the test pairs."""
    score_pairs = [(scores[chosen], scores[rejected]) for chosen, rejected in (pair.items for pair in pairs)]
    controlled_pairs = accuracy_run.apply_length_control(scored_pairs, model)
    item_scores = [scores[item] for item in accuracy_run.unique_items(pairs)]
    return {
        "n": len(pairs),
        "residual": max(abs(score.residual) for score in scores.values()),
        "contrasts": contrasts.evaluate_contrasts(model, score_pairs),
        "doubt": uncertainty.evaluate_error_detection(score_pairs),
        "calibration": {"test": _calibration_error(scored_pairs, model)},
        "length": {
            "plain": accuracy_run.evaluate_length(scored_pairs),
            "controlled": accuracy_run.evaluate_length(controlled_pairs),
        },
        "steering": steering.evaluate_steering(model, *stack_projections(item_scores)),
    }


def _evaluate_out_of_distribution(
    engine: Engine, name: str, sample: list[Item], scores: dict[Item, Score], progress: Progress
) -> dict[str, float]:
    """Return how well the distance detects responses that were generated for the sample's prompts."""
    rng = Random(0)  # noqa: S311 # reproducible sampling, not a secret
    prompts = [item.messages for item in sample[:MAX_OUT_OF_DISTRIBUTION_PROMPTS]]
    generated_scores = {}
    for kind, generate in out_of_distribution.GENERATORS.items():
        items = [Item(messages, generate(messages[-1].content, rng)) for messages in prompts]
        generated_scores[kind] = list(accuracy_run.score_items(engine, name, items, progress, kind).values())
    ordinary_scores = [scores[item] for item in sample]
    return uncertainty.evaluate_out_of_distribution_detection(ordinary_scores, generated_scores)


def _score_pairs(engine: Engine, name: str, pairs: list[Pair], progress: Progress) -> ScoredPairs:
    items = accuracy_run.unique_items(pairs)
    scores = accuracy_run.score_items(engine, name, items, progress, "shifted pairs")
    return accuracy_run.build_scored_pairs(engine, pairs, scores)


def _calibration_error(pairs: ScoredPairs, model: RewardModel) -> float:
    return expected_calibration_error(*predict_both_orders(pairs.margins, model.card.temperature))
