"""Tiny models whose projections and rewards vary between responses as those of trained models do."""

from dataclasses import replace

import torch

from app.reward.engine import Engine
from app.reward.reward_model import RewardModel
from app.scores import Score
from app.types import Explain, Item, ScoreOptions
from tests.support import tiny


def spread(engine: Engine, name: str, items: list[Item]) -> RewardModel:
    """Return a tiny model whose projections, and rewards of whole responses, have variance 1 on the items.

    It has no probes, because its rewards have changed.
    """
    model = engine.models[name]
    scores = score(engine, model, items)
    projections = torch.stack([torch.from_numpy(scored.projections) for scored in scores]).double()
    head = replace(model.head, center=projections.mean(0), scale=projections.std(0))
    std = head.score_members(head.standardise(projections)).mean(1).std()
    return replace(model, head=replace(head, w2=head.w2 / std, b2=head.b2 / std), probes=())


def score(
    engine: Engine, model: RewardModel, items: list[Item], steer: dict[str, float] | None = None
) -> list[Score]:
    """Score items with one model, on the backbone of an engine."""
    name = model.card.name
    scorer = Engine(engine.backbone, engine.text, {name: model})
    options = ScoreOptions((name,), Explain.NONE, steer=steer or {})
    return [scored for (scored,) in tiny.score_items(scorer, items, options)]
