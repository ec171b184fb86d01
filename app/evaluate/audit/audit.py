"""What a model's users rely on, tested: explanations, doubt, calibration, length control, steering."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.backbone.model_sources import Progress
from app.backbone.packing import pack, passes
from app.evaluate import accuracy_run, report
from app.evaluate.accuracy import Judged, calibration_error, outcomes
from app.evaluate.audit import faithfulness, out_of_distribution, steering, uncertainty
from app.reward.bundle import RewardModel
from app.reward.directions import pool, span
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Item, Pair, Score

SAMPLE = 200
STRANGERS = 100


def run(
    folder: Path, pairs: list[Pair], shifted: list[Pair], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Every figure, added to the bundle's report; `shifted` are pairs unlike those it was trained on."""
    engine, name = accuracy_run.alone(folder, settings, progress)
    model = engine.models[name]
    exchanges = accuracy_run.responses(pairs)
    scores = accuracy_run.score(engine, name, exchanges, progress, "test pairs")
    judged = accuracy_run.judged(engine, pairs, scores)
    drawn = Random(0).sample(exchanges, min(SAMPLE, len(exchanges)))  # noqa: S311 # chance, not a secret
    found: dict[str, Any] = {
        "n": len(pairs),
        "residual": max(abs(score.residual) for score in scores.values()),
        "explanations": faithfulness.examine(model, residuals(engine, name, drawn, progress)),
        "doubt": uncertainty.on_errors([(scores[a], scores[b]) for a, b in (pair.items for pair in pairs)]),
        "strangers": _strangers(engine, name, drawn, scores, progress),
        "calibration": {"test": _ece(judged, model)},
        "length": {
            "plain": accuracy_run.length(judged),
            "controlled": accuracy_run.length(accuracy_run.controlled(judged, model)),
        },
        "steering": steering.examine(model, *readings([scores[one] for one in exchanges])),
    }
    if shifted:
        others = accuracy_run.score(engine, name, accuracy_run.responses(shifted), progress, "shifted pairs")
        found["calibration"]["shifted"] = _ece(accuracy_run.judged(engine, shifted, others), model)
    report.write(folder, model.card, {"verified": found})
    return found


@torch.inference_mode()
def residuals(engine: Engine, name: str, exchanges: list[Item], progress: Progress) -> Tensor:
    """Pooled residuals of responses, as the model reads them, (B, D)."""
    card = engine.models[name].card
    encoded = engine.encode(exchanges)
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    done = 0
    for some in passes([one.ids for one in encoded], accuracy_run.PASS_TOKENS):
        packed = pack([encoded[i].ids for i in some])
        rows = [packed.rows(at, *span(card.readout, encoded[i])) for at, i in enumerate(some)]
        layer = engine.backbone.residuals(packed, {card.layer: np.concatenate(rows)})[card.layer]
        for i, read in zip(some, rows, strict=True):
            found[i] = pool(layer.at(read), [len(read)])[0]
        done += len(some)
        progress("residuals", done / len(encoded))
    return torch.stack(found)


def readings(scores: list[Score]) -> tuple[Tensor, Tensor]:
    """Projections and activations of scored responses, (B, K) each."""
    return (
        torch.from_numpy(np.stack([score.projections for score in scores])),
        torch.from_numpy(np.stack([score.activations for score in scores])),
    )


def _strangers(
    engine: Engine, name: str, drawn: list[Item], scores: dict[Item, Score], progress: Progress
) -> dict[str, float]:
    rng = Random(0)  # noqa: S311 # chance, not a secret
    asked = drawn[:STRANGERS]
    found = {}
    for kind, say in out_of_distribution.KINDS.items():
        odd = [Item(one.messages, say(one.messages[-1].content, rng)) for one in asked]
        found[kind] = list(accuracy_run.score(engine, name, odd, progress, kind).values())
    return uncertainty.on_strangers([scores[one] for one in drawn], found)


def _ece(judged: Judged, model: RewardModel) -> float:
    return calibration_error(*outcomes(judged.margins, model.card.temperature))
