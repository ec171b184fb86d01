"""What preference pairs reward: for each concept, how often the response that expresses it is preferred."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from app.reward.reward_model import RewardModel
from app.scores import DoubleArray
from app.train.features import PairFeatures
from app.train.selection import LatentSource

MIN_PAIRS = 20
"""Pairs that must differ in a concept before its effect is estimated."""
NUM_RESAMPLES = 400
NEWTON_STEPS = 12
RIDGE = 1e-3
"""Penalty of the squared coefficients, so that they stay finite if all pairs agree."""
NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class ConceptEffect:
    """How a concept goes with preferences, on the pairs of which exactly one response expresses it.

    `win_rate` is the share of them in which that response is preferred, `controlled` the same at equal
    length, with its 95 % interval over prompts; both are None for fewer than MIN_PAIRS pairs. `examples` are
    numbers of pairs in which the concept differs most.
    """

    name: str
    pairs: int
    share: float
    win_rate: float | None = None
    controlled: float | None = None
    low: float | None = None
    high: float | None = None
    examples: tuple[int, ...] = ()


def measure_effects(model: RewardModel, features: PairFeatures, groups: list[str]) -> list[ConceptEffect]:
    """Return the effect of each concept of a model, those furthest from one half first."""
    card = model.card
    source = LatentSource(model.dictionary, card.sae_input, card.layer, card.readout)
    activations = source.activations(features)
    log_lengths = features.lengths().double().clamp(min=1).log().numpy()
    effects = []
    for concept in model.concepts:
        active = activations[:, :, model.concept_indices[concept.name]].clamp(min=0).sum(2)
        effects.append(_measure_effect(concept.name, active, log_lengths, groups))
    return sorted(effects, key=lambda effect: -abs((effect.controlled or 0.5) - 0.5))


def _measure_effect(
    name: str, active: torch.Tensor, log_lengths: DoubleArray, groups: list[str]
) -> ConceptEffect:
    """Return the effect of a concept from its activity in the responses, (N, 2)."""
    expresses = (active > 0).numpy()
    differs = np.flatnonzero(expresses[:, 0] != expresses[:, 1])
    count, share = len(differs), len(differs) / max(len(expresses), 1)
    if count < MIN_PAIRS:
        return ConceptEffect(name, count, share)
    wins = expresses[differs, 0].astype(float)
    length = (log_lengths[differs, 0] - log_lengths[differs, 1]) * np.where(wins > 0, 1.0, -1.0)
    order = np.argsort(-(active[differs, 0] - active[differs, 1]).abs().numpy(), kind="stable")
    weights = _resample_groups([groups[i] for i in differs])
    intercepts = fit_intercepts(wins, length, np.concatenate([np.ones((1, count)), weights]))
    low, high = np.percentile(expit(intercepts[1:]), [2.5, 97.5])
    return ConceptEffect(
        name, count, share, float(wins.mean()), float(expit(intercepts[0])), float(low), float(high),
        tuple(differs[order[:NUM_EXAMPLES]].tolist()),
    )  # fmt: skip


def fit_intercepts(wins: DoubleArray, length: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """Fit logistic regressions of wins (N,) on a length difference (N,), one for each row of weights (R, N).

    Returns the intercepts (R,): the log-odds of a win at equal length.
    """
    design = np.stack([np.ones_like(length), length], axis=1)
    coefficients = np.zeros((len(weights), 2))
    for _ in range(NEWTON_STEPS):
        predicted = expit(coefficients @ design.T)
        gradient = (weights * (wins - predicted)) @ design - RIDGE * coefficients
        curvature = np.einsum("rn,ni,nj->rij", weights * predicted * (1 - predicted), design, design)
        coefficients += np.linalg.solve(curvature + RIDGE * np.eye(2), gradient[..., None])[..., 0]
    return coefficients[:, 0]


def _resample_groups(groups: list[str]) -> NDArray[np.float64]:
    """Return how often each pair is drawn when whole prompt groups are resampled, (NUM_RESAMPLES, N)."""
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    index = np.array([names[group] for group in groups])
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(names), (NUM_RESAMPLES, len(names)))
    counts = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws])
    weights: NDArray[np.float64] = counts[:, index].astype(np.float64)
    return weights
