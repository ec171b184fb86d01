"""What in the method matters: every variant on the same pairs, the same seeds, the same test.

Each seed draws its own training pairs, so intervals speak of another thousand pairs as well as of other
prompts; wins are averaged over seeds before prompts are resampled. Only the variant named so learns from
drills. What a variant won is shelved, so that a killed run goes on and nothing is trained twice.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from app.data.pairs import hash_to_unit_interval
from app.evaluate.accuracy import Float64Array, accuracy_difference, bootstrap_mean, pair_wins
from app.train import variants as compare
from app.train.feature_cache import TensorCache
from app.train.variants import Arena, Rival
from app.types import Pooling

SEEDS = 5
SIZES = (100, 300, 1000, 3000)
KS = (16, 32, 64, 128, 256, 512)
WINS = "wins"
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared: an arena with all its training pairs, how many of them a variant gets, and seeds.

    `source` says where the arena's tables are from.
    """

    arena: Arena
    pairs: int
    shelf: TensorCache
    source: str
    seeds: int = SEEDS
    sizes: tuple[int, ...] = SIZES
    ks: tuple[int, ...] = KS
    layers: tuple[int, ...] = ()

    @property
    def groups(self) -> list[str]:
        """Prompt groups of the test pairs."""
        return [pair.group for pair in self.arena.test]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to read a preference in an arena that differs in something."""

    rival: Rival
    arena: Arena


def run(study: Study, report: Report) -> dict[str, Any]:
    """Every variant, the data-efficiency curve and the curve over K, ready for JSON."""
    drilling, study = study, replace(study, arena=replace(study.arena, drilled=None))
    variants = _variants(study)
    if drilling.arena.drilled:
        variants["with drills"] = Variant(compare.selected, drilling.arena)
    won = {}
    for done, (name, variant) in enumerate(variants.items()):
        report("variants", done / len(variants))
        won[name] = _wins(study, variant, study.pairs)
    report("variants", 1.0)
    return {
        "pairs": study.pairs,
        "seeds": study.seeds,
        "n": len(study.arena.test),
        "variants": rows(won, study.groups),
        "data": _data(study, report),
        "directions": _directions(study, report),
    }


def _variants(study: Study) -> dict[str, Variant]:
    """The method first, then one change at a time."""
    here = study.arena
    changed = {
        f"SparseRM: K = {here.k}, layer {here.layer}, {here.readout}, {here.plan.loss}": _at(here),
        "random latents of the SAE": _at(here, compare.random_latents),
        "random directions": _at(here, compare.random_directions),
        "SAE activations instead of projections": _at(here, compare.activations),
        "Bradley-Terry loss": _at(here, plan=replace(here.plan, loss="bradley-terry")),
        "pointwise BCE loss": _at(here, plan=replace(here.plan, loss="bce")),
        "one head instead of an ensemble": _at(here, plan=replace(here.plan, heads=1)),
    }
    for readout in Pooling:
        if readout is not here.readout:
            changed[f"read-out: {readout}"] = _at(here, readout=readout)
    changed["dense: same head on the whole residual"] = _at(here, compare.whole_residual)
    for layer in study.layers:
        if layer != here.layer:
            changed[f"dense at layer {layer}"] = _at(here, compare.whole_residual, layer=layer)
    changed["linear probe on the same projections"] = _at(here, compare.linear_on_selected)
    changed["dense: linear probe"] = _at(here, compare.linear_probe)
    changed["TF-IDF of the response"] = _at(here, compare.words)
    changed["longer response wins"] = _at(here, compare.longer)
    return changed


def _data(study: Study, report: Report) -> dict[str, dict[str, Any]]:
    """Accuracy against the number of training pairs."""
    lines = {
        "SparseRM": compare.selected,
        "dense head": compare.whole_residual,
        "TF-IDF": compare.words,
    }
    sizes = [size for size in study.sizes if size <= len(study.arena.train)]
    points = {
        name: {str(size): (_at(study.arena, rival), size) for size in sizes} for name, rival in lines.items()
    }
    return _curves(study, points, report, "data")


def _directions(study: Study, report: Report) -> dict[str, dict[str, Any]]:
    """Accuracy against the number of directions of each sign."""
    lines = {"selected": compare.selected, "random directions": compare.random_directions}
    ks = [k for k in study.ks if 2 * k <= len(study.arena.dictionary.directions)]
    points = {
        name: {str(k): (_at(study.arena, rival, k=k), study.pairs) for k in ks}
        for name, rival in lines.items()
    }
    return _curves(study, points, report, "directions")


def _curves(
    study: Study, lines: Mapping[str, Mapping[str, tuple[Variant, int]]], report: Report, what: str
) -> dict[str, dict[str, Any]]:
    """A row for every line at every point, and there how far the first line is ahead."""
    found: dict[str, dict[str, Any]] = {name: {} for name in lines}
    points = list(next(iter(lines.values())))
    for done, point in enumerate(points):
        report(what, done / len(points))
        won = {name: _wins(study, *line[point]) for name, line in lines.items()}
        for name, row in rows(won, study.groups).items():
            found[name][point] = row
    report(what, 1.0)
    return found


def rows(found: Mapping[str, Float64Array], groups: list[str]) -> dict[str, dict[str, Any]]:
    """A share with its interval for each, and how far the first is ahead of the others."""
    first, *_ = found
    return {
        name: asdict(bootstrap_mean(one, groups))
        | ({} if name == first else {"lead": asdict(accuracy_difference(found[first], one, groups))})
        for name, one in found.items()
    }


def seeded(study: Study, variant: Variant, pairs: int) -> Float64Array:
    """Wins of a variant on every test pair, a row for each seed."""
    draws = (_drawn(variant.arena, pairs, seed) for seed in range(study.seeds))
    return np.stack([_once(study, variant.rival, drawn) for drawn in draws])


def _wins(study: Study, variant: Variant, pairs: int) -> Float64Array:
    mean: Float64Array = seeded(study, variant, pairs).mean(0)
    return mean


def _once(study: Study, rival: Rival, arena: Arena) -> Float64Array:
    """What a rival wins in an arena, from the shelf if it is there."""
    choices = (arena.layer, arena.readout, arena.k, arena.plan, arena.drilled and arena.drilled.owners)
    facts = (study.source, rival.__name__, *choices, arena.train, arena.test)
    item = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    if not study.shelf.get(WINS, [item]):
        study.shelf.put([(WINS, item, {WINS: torch.from_numpy(pair_wins(rival(arena)))})])
    won: Float64Array = study.shelf.get(WINS, [item])[item][WINS].numpy()
    return won


def _drawn(arena: Arena, pairs: int, seed: int) -> Arena:
    """A sample of the training pairs, and a seed for everything else."""
    order = sorted(range(len(arena.train)), key=lambda i: hash_to_unit_interval(f"{seed}/{i}"))[:pairs]
    return replace(
        arena,
        train=[arena.train[i] for i in order],
        seen=arena.seen.subset(order),
        drilled=arena.drilled.of(set(order)) if arena.drilled else None,
        plan=replace(arena.plan, seed=seed),
    )


def _at(arena: Arena, rival: Rival = compare.selected, **changes: Any) -> Variant:
    return Variant(rival, replace(arena, **changes))
