"""What `sparserm audit` does, from files and settings."""

import json
from collections.abc import Collection
from pathlib import Path

from app.data.pairs import iter_rows, parse_row, read_pairs
from app.errors import DataError
from app.reward import bundle
from app.settings import Settings
from app.train.feature_cache import write_atomically
from app.train.features import extract_features
from app.train.jobs import load_model_extractor
from app.train.pair_audit.duplicates import find_duplicates
from app.train.pair_audit.effects import measure_effects
from app.train.pair_audit.labels import compute_heldout_margins
from app.train.pair_audit.report import PairAudit, write_report
from app.types import Progress


def audit_pairs(
    source: str,
    model_name: str,
    test: str | None,
    sae_folder: Path | None,
    settings: Settings,
    progress: Progress,
) -> PairAudit:
    """Audit a file of pairs through the concepts of a model; `test` is a file that should share no prompt."""
    model = bundle.load_bundle(settings.models_dir / model_name)
    if not model.concepts:
        raise DataError(f"{model_name} has no concepts; name its features first (`sparserm names`)")
    pairs = read_pairs(source)
    others = read_pairs(test) if test else []
    extractor = load_model_extractor(model, sae_folder, settings, progress)
    features = extract_features(
        [pair.items for pair in pairs], extractor, settings.cache,
        lambda done: progress("pairs", min(done / (2 * len(pairs)), 1)),
    )  # fmt: skip
    groups = [pair.group for pair in pairs]
    margins = compute_heldout_margins(
        features, model.card.layer, groups, lambda done: progress("labels", done)
    )
    effects = measure_effects(model, features, groups)
    name = Path(source).name
    return PairAudit(name, model_name, len(set(groups)), effects, margins, find_duplicates(pairs, others))


def save_audit(audit: PairAudit, folder: Path) -> None:
    """Write report.md, its figure, and pairs.jsonl: the held-out margin of each row's label, lowest first."""
    write_report(audit, folder)
    rows = ({"row": index + 1, "margin": round(float(audit.margins[index]), 4)} for index in audit.suspicious)
    write_atomically(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_repaired(source: str, out: Path, *, drop: Collection[int], flip: Collection[int]) -> int:
    """Write a copy of pairs as JSON lines without some rows and with others' labels flipped.

    Rows count from 0. All fields are kept. Returns the number of rows of the copy.
    """
    lines = []
    for number, (location, raw) in enumerate(iter_rows(source)):
        row = parse_row(raw, location)
        if number in drop:
            continue
        if number in flip:
            row = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        lines.append(json.dumps(row, ensure_ascii=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(f"{line}\n" for line in lines))
    return len(lines)
