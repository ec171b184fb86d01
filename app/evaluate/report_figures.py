"""The pictures of a report: which figures each shows, and what it is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.evaluate import figures

Found = Mapping[str, Any]


def draw(folder: Path, known: Found) -> None:
    """Every picture that what is known allows."""
    if "test" in known:
        _test(folder, known)
    if "ablation" in known:
        _ablation(folder, known)


def _test(folder: Path, known: Found) -> None:
    test = known["test"]
    rows = [("SparseRM", test), *known["baselines"].items()]
    note = f"n = {test['n']:,} test pairs of unseen prompts, bars: 95 % intervals"
    figures.bars(folder / "accuracy.png", rows, "How often does it agree with people?", note)
    figures.calibration(folder / "calibration.png", test)
    figures.length(folder / "length.png", test)


def _ablation(folder: Path, known: Found) -> None:
    found, data = known["ablation"], dict(known["ablation"]["data"])
    note = f"n = {found['n']:,} test pairs, {found['seeds']} seeds, 95 % intervals"
    figures.bars(
        folder / "variants.png", list(found["variants"].items()), "What matters in the method?", note
    )
    seeds = note
    if "standard" in known:
        data["StandardRM"] = {size: row["standard"] for size, row in known["standard"]["sizes"].items()}
        seeds += "; StandardRM: one seed"
    figures.curves(folder / "data.png", data, "training pairs", "How much data does it take?", seeds)
    lines = found["directions"]
    figures.curves(
        folder / "directions.png", lines, "directions of each sign", "How many directions does it take?", note
    )
