"""A bundle before a jury: preference pairs scored by the engine that would serve them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from app.backbone.model_sources import Progress
from app.backbone.packing import passes
from app.data.pairs import having
from app.errors import NonFinite
from app.evaluate.accuracy import Judged, examine
from app.reward import bundle, loading
from app.reward.bundle import RewardModel
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, Pair, Score, ScoreJob, ScoreOptions

PASS_TOKENS = 4096


def run(
    folder: Path, pairs: list[Pair], slices: tuple[str, ...], settings: Settings, report: Progress
) -> dict[str, Any]:
    """What `examine` finds about a bundle on these pairs, without and with length control."""
    engine, name = alone(folder, settings, report)
    model = engine.models[name]
    masks = {fact: having(pairs, fact) for fact in slices}
    scores = score(engine, name, responses(pairs), report)
    plain = judged(engine, pairs, scores)
    return {
        "model": name,
        **examine(plain, model.card.temperature, masks),
        "length_controlled": length(controlled(plain, model)),
    }


def alone(folder: Path, settings: Settings, report: Progress) -> tuple[Engine, str]:
    """An engine with nothing but the bundle in a folder, its probes passed."""
    model = bundle.load(folder)
    backbone, text = loading.resident(model.card.backbone, model.card.layer, settings, report)
    engine = Engine(backbone, text, {model.card.name: model})
    engine.verify()
    return engine, model.card.name


def responses(pairs: Iterable[Pair]) -> list[Item]:
    """Every response once, however many pairs it stands in."""
    return list(dict.fromkeys(exchange for pair in pairs for exchange in pair.items))


def score(
    engine: Engine,
    name: str,
    exchanges: list[Item],
    report: Progress,
    stage: str = "scoring",
    *,
    explain: Explain = Explain.NONE,
) -> dict[Item, Score]:
    """What the engine says of each."""
    encoded = engine.encode(exchanges)
    found: dict[Item, Score] = {}
    for some in passes([one.ids for one in encoded], PASS_TOKENS):
        jobs = [ScoreJob(encoded[i], ScoreOptions((name,), explain)) for i in some]
        for i, scored in zip(some, engine.score(jobs), strict=True):
            if isinstance(scored, NonFinite):
                raise scored
            found[exchanges[i]] = scored.scores[0]
        report(stage, len(found) / len(exchanges))
    return found


def judged(engine: Engine, pairs: list[Pair], scores: Mapping[Item, Score]) -> Judged:
    """Pairs with the rewards and lengths of their responses."""
    encoded = zip(scores, engine.encode(list(scores)), strict=True)
    lengths = {exchange: one.stop - one.start for exchange, one in encoded}
    rewards = torch.tensor([[scores[e].reward for e in pair.items] for pair in pairs]).double()
    tokens = torch.tensor([[lengths[e] for e in pair.items] for pair in pairs])
    return Judged(rewards, tokens, [pair.group for pair in pairs])


def controlled(plain: Judged, model: RewardModel) -> Judged:
    """The same pairs under length control."""
    return replace(plain, rewards=plain.rewards + model.calibration.correction(plain.tokens).cpu())


def length(judged: Judged) -> dict[str, Any]:
    """Accuracy, and what length has to do with it."""
    found = examine(judged, 1.0, {})
    return {key: found[key] for key in ("accuracy", "ci_low", "ci_high", "n", "length")}


def table(found: dict[str, Any]) -> Table:
    """The same for eyes."""
    out = Table("part", "accuracy", "95 % interval", "pairs", title=found["model"])
    length = found["length"]
    parts = {
        "all": found,
        **found["slices"],
        "chosen is longer": length["chosen_longer"],
        "chosen is shorter": length["chosen_shorter"],
    }
    for name, row in parts.items():
        if row:
            interval = f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
            out.add_row(name, f"{row['accuracy']:.3f}", interval, str(row["n"]))
    out.caption = (
        f"calibration error {found['ece']:.3f}, Brier {found['brier']:.3f}, "
        f"reward and length within a prompt {length['spearman']:+.2f}"
    )
    return out
