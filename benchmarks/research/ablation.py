"""Measures which parts of the method matter: every variant on the same pairs, seeds and test.

Each seed draws its own training pairs, so intervals cover the choice of the training pairs as well as of the
test prompts; wins are averaged over seeds before prompts are resampled. Only one variant is trained on
augmented pairs. The wins of each training are cached, so a killed run resumes and nothing is trained twice.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from app.data.pairs import hash_to_unit_interval
from app.evaluate.accuracy import Float64Array, accuracy_difference, bootstrap_mean, pair_wins
from app.train.feature_cache import TensorCache
from app.train.features import PairFeatures
from app.train.head import baselines
from app.train.head.baselines import BaselineMethod, ComparisonData
from app.train.head.network import NetworkHeadConfig
from app.train.sae.choice import choose_response_sae
from app.train.sae.response_sae import ResponseSaeConfig
from app.train.selection import LatentSource, SelectionData
from app.types import Pooling, Progress, SaeInput
from benchmarks.research import variants as research

NUM_SEEDS = 5
SIZES = (100, 300, 1000, 3000)
KS = (16, 32, 64, 128, 256, 512)
WINS = "wins"


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is compared: all training pairs, how many of them a variant is trained on, and how often.

    `source` identifies the features in the cache's keys. `sizes`, `ks` and `layers` are the points of the
    curves.
    """

    data: ComparisonData
    num_pairs: int
    cache: TensorCache
    source: str
    seeds: int = NUM_SEEDS
    sizes: tuple[int, ...] = SIZES
    ks: tuple[int, ...] = KS
    layers: tuple[int, ...] = ()
    response_sae: ResponseSaeConfig = field(default_factory=ResponseSaeConfig)
    trained_latents: dict[tuple[Any, ...], LatentSource] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """Prompt groups of the test pairs."""
        return [pair.group for pair in self.data.test_pairs]

    def train_latents(
        self, data: ComparisonData, features: PairFeatures, groups: list[str], seed: int
    ) -> LatentSource:
        """Return the latents of a sample of training pairs; an SAE of responses is trained on the sample.

        The first call for a sample also chooses among SAEs; later ones with another k get the same SAE.
        """
        key = (len(groups), seed, data.layer, data.pooling)
        if data.latents.sae_input is SaeInput.TOKENS:
            return data.latents
        if key not in self.trained_latents:
            selection_data = SelectionData(features, groups, data.k, seed)
            config = replace(self.response_sae, seed=seed)
            sae = choose_response_sae(selection_data, data.layer, data.pooling, config, lambda _: None)
            self.trained_latents[key] = LatentSource(
                sae.dictionary, SaeInput.RESPONSES, data.layer, data.pooling
            )
        return self.trained_latents[key]


@dataclass(frozen=True, slots=True)
class Variant:
    """A method, and the data with the choices it is trained with."""

    method: BaselineMethod
    data: ComparisonData


def run_ablation(ablation: Ablation, progress: Progress) -> dict[str, Any]:
    """Measure every variant, and the curves over training pairs and over directions; ready for JSON."""
    augmented = ablation.data
    ablation = replace(ablation, data=replace(ablation.data, augmented=None))
    variants = _build_variants(ablation)
    if augmented.augmented:
        variants["with drills"] = Variant(research.train_method, augmented)
    wins = {}
    for done, (name, variant) in enumerate(variants.items()):
        progress("variants", done / len(variants))
        wins[name] = _compute_mean_wins(ablation, variant, ablation.num_pairs)
    progress("variants", 1.0)
    return {
        "pairs": ablation.num_pairs,
        "seeds": ablation.seeds,
        "n": len(ablation.data.test_pairs),
        "variants": summarise_wins(wins, ablation.groups),
        "data": _measure_data_curve(ablation, progress),
        "directions": _measure_direction_curve(ablation, progress),
    }


def _build_variants(ablation: Ablation) -> dict[str, Variant]:
    """Return the method first, then variants that differ from it in one choice, by their names in reports."""
    data = ablation.data
    variants = {
        f"SparseRM: K = {data.k}, layer {data.layer}, {data.pooling}": _vary(data),
        "selected directions alone": _vary(data, baselines.train_on_selected_directions),
        "random latents of the SAE": _vary(data, research.train_on_random_latents),
        "random directions": _vary(data, baselines.train_on_random_directions),
        "SAE activations instead of projections": _vary(data, baselines.train_on_sae_activations),
        "one head instead of an ensemble": _vary(data, config=replace(data.config, heads=1)),
    }
    if isinstance(data.config, NetworkHeadConfig):
        for name, loss in (("Bradley-Terry loss", "bradley-terry"), ("pointwise BCE loss", "bce")):
            variants[name] = _vary(data, config=replace(data.config, loss=loss))
    for pooling in Pooling:
        if pooling is not data.pooling:
            variants[f"read-out: {pooling}"] = _vary(data, pooling=pooling)
    variants["dense: same head on the whole residual"] = _vary(data, baselines.train_on_whole_residual)
    for layer in ablation.layers:
        if layer != data.layer:
            variants[f"dense at layer {layer}"] = _vary(data, baselines.train_on_whole_residual, layer=layer)
    variants["linear probe on the same projections"] = _vary(data, research.train_linear_probe_on_selected)
    variants["dense: linear probe"] = _vary(data, baselines.train_linear_probe)
    variants["TF-IDF of the response"] = _vary(data, baselines.train_tfidf)
    variants["longer response wins"] = _vary(data, baselines.prefer_longer_response)
    return variants


def _measure_data_curve(ablation: Ablation, progress: Progress) -> dict[str, dict[str, Any]]:
    """Measure accuracy against the number of training pairs."""
    methods = {
        "SparseRM": research.train_method,
        "dense head": baselines.train_on_whole_residual,
        "TF-IDF": baselines.train_tfidf,
    }
    sizes = [size for size in ablation.sizes if size <= len(ablation.data.train_pairs)]
    points = {
        name: {str(size): (_vary(ablation.data, method), size) for size in sizes}
        for name, method in methods.items()
    }
    return _measure_curves(ablation, points, progress, "data")


def _measure_direction_curve(ablation: Ablation, progress: Progress) -> dict[str, dict[str, Any]]:
    """Measure accuracy against the number of directions of each sign."""
    methods = {
        "selected": baselines.train_on_selected_directions,
        "random directions": baselines.train_on_random_directions,
    }
    ks = [k for k in ablation.ks if 2 * k <= len(ablation.data.latents.dictionary.directions)]
    points = {
        name: {str(k): (_vary(ablation.data, method, k=k), ablation.num_pairs) for k in ks}
        for name, method in methods.items()
    }
    return _measure_curves(ablation, points, progress, "directions")


def _measure_curves(
    ablation: Ablation,
    curves: Mapping[str, Mapping[str, tuple[Variant, int]]],
    progress: Progress,
    stage: str,
) -> dict[str, dict[str, Any]]:
    """Return a row for each curve at each point, with the lead of the first curve at that point."""
    results: dict[str, dict[str, Any]] = {name: {} for name in curves}
    points = list(next(iter(curves.values())))
    for done, point in enumerate(points):
        progress(stage, done / len(points))
        wins = {name: _compute_mean_wins(ablation, *curve[point]) for name, curve in curves.items()}
        for name, row in summarise_wins(wins, ablation.groups).items():
            results[name][point] = row
    progress(stage, 1.0)
    return results


def summarise_wins(wins: Mapping[str, Float64Array], groups: list[str]) -> dict[str, dict[str, Any]]:
    """Return the mean of each variant with its interval, and the lead of the first over the others."""
    first, *_ = wins
    return {
        name: asdict(bootstrap_mean(values, groups))
        | ({} if name == first else {"lead": asdict(accuracy_difference(wins[first], values, groups))})
        for name, values in wins.items()
    }


def compute_wins(ablation: Ablation, variant: Variant, num_pairs: int) -> Float64Array:
    """Train a variant once for each seed; return its wins on the test pairs, (seeds, N)."""
    samples = (_draw_sample(ablation, variant.data, num_pairs, seed) for seed in range(ablation.seeds))
    return np.stack([_compute_cached_wins(ablation, variant.method, sample) for sample in samples])


def _compute_mean_wins(ablation: Ablation, variant: Variant, num_pairs: int) -> Float64Array:
    mean: Float64Array = compute_wins(ablation, variant, num_pairs).mean(0)
    return mean


def _compute_cached_wins(ablation: Ablation, method: BaselineMethod, data: ComparisonData) -> Float64Array:
    """Return the wins of a method, from the cache if it was trained on the same data before."""
    augmented = data.augmented and data.augmented.pair_indices
    choices = (data.layer, data.pooling, data.k, data.config, augmented)
    parts = (ablation.source, method.__name__, *choices, data.train_pairs, data.test_pairs)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    if not ablation.cache.get(WINS, [key]):
        ablation.cache.put([(WINS, key, {WINS: torch.from_numpy(pair_wins(method(data)))})])
    wins: Float64Array = ablation.cache.get(WINS, [key])[key][WINS].numpy()
    return wins


def _draw_sample(ablation: Ablation, data: ComparisonData, num_pairs: int, seed: int) -> ComparisonData:
    """Draw some of the training pairs by a seed, which is also the seed of the training."""
    order = sorted(range(len(data.train_pairs)), key=lambda i: hash_to_unit_interval(f"{seed}/{i}"))
    indices = order[:num_pairs]
    features = data.train_features.subset(indices)
    pairs = [data.train_pairs[i] for i in indices]
    return replace(
        data,
        train_pairs=pairs,
        train_features=features,
        latents=ablation.train_latents(data, features, [pair.group for pair in pairs], seed),
        augmented=data.augmented.subset(set(indices)) if data.augmented else None,
        config=replace(data.config, seed=seed),
    )


def _vary(data: ComparisonData, method: BaselineMethod = research.train_method, **changes: Any) -> Variant:
    return Variant(method, replace(data, **changes))
