"""What in the method matters: every variant on the same pairs, the same seeds, the same test.

Each seed draws its own training pairs, so intervals speak of another thousand pairs as well as of other
prompts; wins are averaged over seeds before prompts are resampled. Only the variant named so learns from
drills.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.evaluate.accuracy import Array, advantage, interval, wins
from app.pairs import chance
from app.train import compare
from app.train.compare import Arena, Rival
from app.types import ReadOut

SEEDS = 5
SIZES = (100, 300, 1000, 3000)
KS = (16, 32, 64, 128, 256, 512)
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared: an arena with all its training pairs, how many of them a variant gets, and seeds."""

    arena: Arena
    pairs: int
    seeds: int = SEEDS
    sizes: tuple[int, ...] = SIZES
    ks: tuple[int, ...] = KS
    layers: tuple[int, ...] = ()

    @property
    def groups(self) -> list[str]:
        """Prompt groups of the test pairs."""
        return [pair.group for pair in self.arena.test]


def run(study: Study, report: Report) -> dict[str, Any]:
    """Every variant, the data-efficiency curve and the curve over K, ready for JSON."""
    drilling, study = study, replace(study, arena=replace(study.arena, drilled=None))
    rivals = _variants(study)
    won = {}
    for done, (name, rival) in enumerate(rivals.items()):
        report("variants", done / len(rivals))
        won[name] = _wins(study, rival, study.pairs)
    if drilling.arena.drilled:
        won["with drills"] = _wins(drilling, compare.selected, study.pairs)
    report("variants", 1.0)
    return {
        "pairs": study.pairs,
        "seeds": study.seeds,
        "n": len(study.arena.test),
        "variants": rows(won, study.groups),
        "data": _data(study, report),
        "directions": _directions(study, report),
    }


def _variants(study: Study) -> dict[str, Rival]:
    """The method first, then one change at a time."""
    here = study.arena
    changed: dict[str, Rival] = {
        f"SparseRM: K = {here.k}, layer {here.layer}, {here.readout}, {here.plan.loss}": compare.selected,
        "random latents of the SAE": compare.random_latents,
        "random directions": compare.random_directions,
        "SAE activations instead of projections": compare.activations,
        "Bradley-Terry loss": _with_plan(loss="bradley-terry"),
        "pointwise BCE loss": _with_plan(loss="bce"),
        "one head instead of an ensemble": _with_plan(heads=1),
    }
    for readout in ReadOut:
        if readout is not here.readout:
            changed[f"read-out: {readout}"] = _at(readout=readout)
    changed["dense: same head on the whole residual"] = compare.whole_residual
    for layer in study.layers:
        if layer != here.layer:
            changed[f"dense at layer {layer}"] = _at(compare.whole_residual, layer=layer)
    changed["linear probe on the same projections"] = compare.linear_on_selected
    changed["dense: linear probe"] = compare.linear_probe
    changed["TF-IDF of the response"] = compare.words
    changed["longer response wins"] = compare.longer
    return changed


def _data(study: Study, report: Report) -> dict[str, dict[str, Any]]:
    """Accuracy against the number of training pairs."""
    lines = {
        "SparseRM": compare.selected,
        "dense head": compare.whole_residual,
        "TF-IDF": compare.words,
    }
    sizes = [size for size in study.sizes if size <= len(study.arena.train)]
    return _curves(study, lines, {str(size): (lambda rival: rival, size) for size in sizes}, report, "data")


def _directions(study: Study, report: Report) -> dict[str, dict[str, Any]]:
    """Accuracy against the number of directions of each sign."""
    lines = {"selected": compare.selected, "random directions": compare.random_directions}
    latents = len(study.arena.dictionary.directions)
    points = {str(k): (_moved(k=k), study.pairs) for k in study.ks if 2 * k <= latents}
    return _curves(study, lines, points, report, "directions")


def _curves(
    study: Study,
    lines: Mapping[str, Rival],
    points: Mapping[str, tuple[Callable[[Rival], Rival], int]],
    report: Report,
    what: str,
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in lines}
    done = 0
    for name, rival in lines.items():
        for point, (change, pairs) in points.items():
            found[name][point] = asdict(interval(_wins(study, change(rival), pairs), study.groups))
            done += 1
            report(what, done / (len(lines) * len(points)))
    return found


def rows(found: Mapping[str, Array], groups: list[str]) -> dict[str, dict[str, Any]]:
    """A share with its interval for each, and how far the first is ahead of the others."""
    first, *_ = found
    return {
        name: asdict(interval(one, groups))
        | ({} if name == first else {"lead": asdict(advantage(found[first], one, groups))})
        for name, one in found.items()
    }


def seeded(study: Study, rival: Rival, pairs: int) -> Array:
    """Wins of a variant on every test pair, a row for each seed."""
    return np.stack([wins(rival(_drawn(study.arena, pairs, seed))) for seed in range(study.seeds)])


def _wins(study: Study, rival: Rival, pairs: int) -> Array:
    mean: Array = seeded(study, rival, pairs).mean(0)
    return mean


def _drawn(arena: Arena, pairs: int, seed: int) -> Arena:
    """A sample of the training pairs, and a seed for everything else."""
    order = sorted(range(len(arena.train)), key=lambda i: chance(f"{seed}/{i}"))[:pairs]
    return replace(
        arena,
        train=[arena.train[i] for i in order],
        seen=arena.seen.part(order),
        drilled=arena.drilled.of(set(order)) if arena.drilled else None,
        plan=replace(arena.plan, seed=seed),
    )


def _with_plan(**changes: Any) -> Rival:
    return lambda arena: compare.selected(replace(arena, plan=replace(arena.plan, **changes)))


def _at(rival: Rival = compare.selected, **changes: Any) -> Rival:
    return lambda arena: rival(replace(arena, **changes))


def _moved(**changes: Any) -> Callable[[Rival], Rival]:
    return lambda rival: _at(rival, **changes)
