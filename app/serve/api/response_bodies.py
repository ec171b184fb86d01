"""Scores as bodies of answers: what is said of a reward is the same over HTTP, in a file and on a screen."""

from dataclasses import asdict
from typing import Any

from app.reward.engine import Engine
from app.types import Contribution, EncodedItem, Score

ALL = 10**6


def reward(score: Score, encoded: EncodedItem) -> dict[str, Any]:
    """One reward of POST /v1/rewards."""
    row: dict[str, Any] = {
        "model": score.model,
        "reward": score.reward,
        "uncertainty": score.uncertainty,
        "percentile": score.percentile,
        "distance": score.distance,
        "baseline_reward": score.baseline,
        "length_correction": score.length_correction,
        "penalty": score.penalty,
        "residual": score.residual,
        "steer": dict(score.steer) or None,
        "features": [_contribution(one) for one in score.features],
        "prompt_tokens": encoded.response_start,
        "response_tokens": encoded.response_end - encoded.response_start,
        "truncated": encoded.truncated,
    }
    if score.parts:
        row["parts"] = [asdict(part) for part in score.parts]
    if score.clusters:
        row["clusters"] = [asdict(cluster) for cluster in score.clusters]
    if score.tokens is not None:
        row["tokens"] = [asdict(token) for token in score.tokens]
    return row


def comparison(engine: Engine, chosen: Score, rejected: Score, top_k: int) -> dict[str, Any]:
    """One comparison of POST /v1/compare."""
    margin = chosen.reward - rejected.reward
    correction = chosen.length_correction - rejected.length_correction
    penalty = chosen.penalty - rejected.penalty
    shares = engine.explain_margin(chosen, rejected, ALL)
    return {
        "margin": margin,
        "probability": engine.compute_preference_probability(chosen.model, margin),
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "uncertainty": (chosen.uncertainty**2 + rejected.uncertainty**2) ** 0.5,
        "distance": max(chosen.distance, rejected.distance),
        "length_correction": correction,
        "penalty": penalty,
        "residual": margin - correction + penalty - sum(one.contribution for one in shares),
        "features": [_contribution(one) for one in shares[:top_k]],
    }


def _contribution(one: Contribution) -> dict[str, Any]:
    return {
        "model": one.model,
        "id": one.feature.latent,
        "sign": one.feature.sign,
        "label": one.feature.label,
        "label_score": one.feature.label_score,
        "url": one.feature.url,
        "contribution": one.contribution,
        "projection": one.projection,
        "activation": one.activation,
        "fired": one.fired,
    }
