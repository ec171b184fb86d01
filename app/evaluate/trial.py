"""A bundle before a jury: preference pairs scored by the engine that would serve them."""

from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from app.errors import NonFinite
from app.evaluate.accuracy import Judged, examine
from app.model import bundle, home
from app.model.engine import Engine
from app.model.packing import passes
from app.model.sources import Progress
from app.pairs import having
from app.settings import Settings
from app.types import Ask, Exchange, Explain, Job, Pair

PASS_TOKENS = 4096


def run(
    folder: Path, pairs: list[Pair], slices: tuple[str, ...], settings: Settings, report: Progress
) -> dict[str, Any]:
    """What `examine` finds about a bundle on these pairs."""
    model = bundle.load(folder)
    backbone, text = home.resident(model.card.backbone, model.card.layer, settings, report)
    engine = Engine(backbone, text, {model.card.name: model})
    engine.verify()
    masks = {fact: having(pairs, fact) for fact in slices}
    return {
        "model": model.card.name,
        **examine(judge(engine, model.card.name, pairs, report), model.card.temperature, masks),
    }


def judge(engine: Engine, name: str, pairs: list[Pair], report: Progress) -> Judged:
    """Every response scored once, however many pairs it stands in."""
    exchanges = list(dict.fromkeys(exchange for pair in pairs for exchange in pair.exchanges))
    encoded = engine.encode(exchanges)
    rewards: dict[Exchange, float] = {}
    for some in passes([one.ids for one in encoded], PASS_TOKENS):
        jobs = [Job(encoded[i], Ask((name,), Explain.NONE)) for i in some]
        for i, scored in zip(some, engine.score(jobs), strict=True):
            if isinstance(scored, NonFinite):
                raise scored
            rewards[exchanges[i]] = scored.scores[0].reward
        report("scoring", len(rewards) / len(exchanges))
    lengths = {e: one.stop - one.start for e, one in zip(exchanges, encoded, strict=True)}
    return Judged(
        torch.tensor([[rewards[e] for e in pair.exchanges] for pair in pairs], dtype=torch.float64),
        torch.tensor([[lengths[e] for e in pair.exchanges] for pair in pairs]),
        [pair.group for pair in pairs],
    )


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
