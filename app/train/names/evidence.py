"""Evidence for features: the responses that express each most, the words that carry it, near misses.

Names are written from the evidence of some prompts and tested on responses to the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from app.backbone.packing import pack, split_into_batches
from app.errors import DataError
from app.reward.explanation.phrases import split_words
from app.reward.reward_model import RewardModel
from app.train.feature_cache import write_atomically
from app.train.features import MAX_BATCH_TOKENS, FeatureExtractor
from app.train.names.responses import (
    STALE,
    ResponseTable,
    ResponseText,
    compute_features_digest,
    sort_firing,
)
from app.train.reward_function import RewardFunction
from app.types import FORBID_EXTRA, Item, Pair, Progress

NUM_STRONGEST = 12
"""Responses that express a feature: half of them the strongest, the others from UPPER_RANKS."""
UPPER_RANKS = (0.03, 0.5)
NUM_NEAR_MISSES = 4
"""Responses with high projections on which the latent does not fire."""
NUM_ABSENT = 8
"""Responses that do not express the feature, of about the length of the strongest."""
NUM_DECIDED = 5
"""Pairs whose order the feature decides, those with its largest contributions."""
NUM_WORDS = 4
EVIDENCE_FILE = "evidence.json"


@dataclass(frozen=True, slots=True)
class Context:
    """A response as evidence for a feature: its standardised projection, and the words that carry it."""

    __pydantic_config__ = FORBID_EXTRA
    text: ResponseText
    projection: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """The evidence for one feature; `decides` are numbers of pairs."""

    __pydantic_config__ = FORBID_EXTRA
    latent: int
    sign: int
    strongest: tuple[Context, ...]
    near_misses: tuple[Context, ...]
    absent: tuple[Context, ...]
    decides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence for all features of a model, and the digest of the features."""

    __pydantic_config__ = FORBID_EXTRA
    model: str
    features_sha256: str
    features: tuple[FeatureEvidence, ...]


def collect_evidence(
    model: RewardModel,
    pairs: list[Pair],
    table: ResponseTable,
    extractor: FeatureExtractor,
    progress: Progress,
) -> Evidence:
    """Return the evidence for every feature with a sign, from the responses that are not for tests."""
    selected = [k for k, feature in enumerate(model.features) if feature.sign]
    chosen = {k: _choose_contexts(table, k) for k in selected}
    shown = sorted({i for kinds in chosen.values() for indices in kinds[:2] for i in indices})
    items = [item for pair in pairs for item in pair.items]
    wanted: dict[int, list[int]] = {index: [] for index in shown}
    for k, kinds in chosen.items():
        for index in (*kinds[0], *kinds[1]):
            wanted[index].append(k)
    words = _find_words(model, items, wanted, extractor, progress)
    decided = find_decided_pairs(model, table)
    features = []
    for k in selected:
        strongest, near_misses, absent = (
            tuple(
                Context(table.texts[i], round(float(table.projections[i, k]), 2), words.get((i, k), ()))
                for i in indices
            )
            for indices in chosen[k]
        )
        feature = model.features[k]
        features.append(
            FeatureEvidence(feature.latent, feature.sign, strongest, near_misses, absent, decided[k])
        )
    return Evidence(model.card.name, table.features_sha256, tuple(features))


def evidence_folder(cache: Path, model: str) -> Path:
    """Return the folder that holds the evidence for a model."""
    return cache / "evidence" / model


def save_evidence(evidence: Evidence, folder: Path) -> None:
    """Write the evidence for a model into its folder."""
    write_atomically(folder / EVIDENCE_FILE, TypeAdapter(Evidence).dump_json(evidence).decode())


def load_evidence(folder: Path, model: RewardModel) -> Evidence:
    """Read the evidence of a folder; raise DataError if there is none, or that of other features."""
    try:
        evidence = TypeAdapter(Evidence).validate_json((folder / EVIDENCE_FILE).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise DataError(
            f"no evidence in {folder}; run `sparserm features evidence {folder.name} PAIRS` first"
        ) from error
    if evidence.features_sha256 != compute_features_digest(model):
        raise DataError(STALE.format(name=model.card.name))
    return evidence


def _choose_contexts(table: ResponseTable, feature: int) -> tuple[list[int], list[int], list[int]]:
    """Return the strongest responses, near misses, and responses without the feature."""
    values, fired, mask = table.projections[:, feature], table.fired[:, feature], ~table.is_tested
    order = sort_firing(values, fired, mask)
    top = table.take_one_a_prompt(order, NUM_STRONGEST // 2)
    used = {table.texts[i].group for i in top}
    low, high = (int(len(order) * share) for share in UPPER_RANKS)
    upper = [i for i in order[low:high].tolist() if table.texts[i].group not in used]
    shuffled = np.random.default_rng(feature).permutation(np.array(upper, dtype=np.int64))
    strongest = top + table.take_one_a_prompt(shuffled, NUM_STRONGEST - len(top))
    near_misses = table.take_one_a_prompt(sort_firing(values, ~fired, mask), NUM_NEAR_MISSES)
    absent = table.match_absent(strongest, values, fired, mask)[:NUM_ABSENT]
    return strongest, near_misses, absent


def _find_words(
    model: RewardModel,
    items: list[Item],
    wanted: Mapping[int, list[int]],
    extractor: FeatureExtractor,
    progress: Progress,
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Return the words with the highest projections for the wanted features of each response."""
    shown = list(wanted)
    function = RewardFunction.from_model(model)
    words: dict[tuple[int, int], tuple[str, ...]] = {}
    encoded = extractor.tokenizer.encode([items[i] for i in shown])
    done = 0
    for batch in split_into_batches([item.ids for item in encoded], MAX_BATCH_TOKENS):
        packed = pack([encoded[i].ids for i in batch])
        rows = [
            packed.rows(n, encoded[i].response_start, encoded[i].response_end) for n, i in enumerate(batch)
        ]
        residuals = extractor.backbone.residuals(packed, {extractor.layer: np.concatenate(rows)})
        for i, item_rows in zip(batch, rows, strict=True):
            projections = function.project_residuals(residuals[extractor.layer].at(item_rows).cpu())
            ids = encoded[i].ids[encoded[i].response_start : encoded[i].response_end]
            features = wanted[shown[i]]
            strongest = _list_words(extractor.tokenizer.decode(ids), projections[:, features])
            words |= {(shown[i], feature): own for feature, own in zip(features, strongest, strict=True)}
        done += len(batch)
        progress("words", done / len(shown))
    return words


def _list_words(texts: list[str], projections: Tensor) -> list[tuple[str, ...]]:
    """Return for each feature the words of a response with the highest mean projections (T, K)."""
    spans = split_words(texts)
    means = torch.stack([projections[start:end].mean(0) for start, end in spans])
    order = means.argsort(dim=0, descending=True)[:NUM_WORDS].T.tolist()
    return [tuple("".join(texts[slice(*spans[i])]).strip() for i in indices) for indices in order]


def find_decided_pairs(model: RewardModel, table: ResponseTable) -> list[tuple[int, ...]]:
    """Return for each feature the pairs whose margin has the other sign without it, not those for tests.

    The margins are those between the responses as a whole, also if the model reads passages.
    """
    x = torch.from_numpy(table.projections)
    by_response = model.head.compute_contributions(x, torch.zeros_like(x[:1]))
    contributions = by_response[::2] - by_response[1::2]
    margins = contributions.sum(1, keepdim=True)
    is_named = torch.from_numpy(~table.is_tested[::2])[:, None]
    decides = (margins * (margins - contributions) < 0) & is_named
    order = (contributions.abs() * decides).argsort(dim=0, descending=True)[:NUM_DECIDED].T.tolist()
    return [tuple(row for row in rows if decides[row, k]) for k, rows in enumerate(order)]
