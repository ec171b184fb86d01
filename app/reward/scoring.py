"""Scoring of packed jobs with one reward model, from the residuals of a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.backbone.attention import RowIndices
from app.backbone.backbone import Residuals
from app.backbone.packing import PackedBatch
from app.reward import explanations
from app.reward.directions import ResponseFeatures, compute_response_features
from app.reward.pooling import credited_span, pool_prefixes, pooled_span
from app.reward.reward_model import RewardModel
from app.types import Explain, Pooling, Profile, Score, ScoreJob, TokenCredit


@dataclass(frozen=True, slots=True)
class PackedJob:
    """A job and its index in a packed batch."""

    job: ScoreJob
    index: int
    batch: PackedBatch

    @property
    def num_features(self) -> int:
        """Maximum number of features in the explanation."""
        return 0 if self.job.options.explain is Explain.NONE else self.job.options.top_k

    def pooled_rows(self, pooling: Pooling) -> RowIndices:
        """Return the rows that are pooled."""
        return self.batch.rows(self.index, *pooled_span(pooling, self.job.encoded))

    def credited_rows(self, pooling: Pooling) -> RowIndices:
        """Return the rows of the tokens that get credit. They include the pooled rows."""
        return self.batch.rows(self.index, *credited_span(pooling, self.job.encoded))

    def required_rows(self, pooling: Pooling) -> RowIndices:
        """Return the rows whose residuals the job needs."""
        needs_credits = self.job.options.explain is Explain.TOKENS
        return self.credited_rows(pooling) if needs_credits else self.pooled_rows(pooling)


def score_with_model(
    name: str,
    model: RewardModel,
    profile: Profile,
    *,
    residuals: Residuals,
    jobs: Sequence[PackedJob],
    decode: Callable[[Sequence[int]], list[str]],
) -> list[Score]:
    """Return the scores of the jobs under a model and a profile, in order."""
    profiles = [explanations.merge_profile(profile, packed.job.options, model) for packed in jobs]
    features = _pool_features(model, residuals, jobs)
    plain = model.head.standardise(features.projections)
    factors = explanations.build_steering_factors(model, profiles).to(plain.device)
    steered = plain * factors
    origin = torch.zeros_like(steered[:1])
    baseline = float(model.head.score_members(origin).mean())
    contributions = model.head.compute_contributions(steered, origin).cpu()
    length_control = [merged.length_control for merged in profiles]
    encoded = [packed.job.encoded for packed in jobs]
    numbers = explanations.compute_reward_numbers(model, plain, steered, encoded, length_control)
    features = ResponseFeatures(*(tensor.cpu() for tensor in features))
    return [
        Score(
            model=name,
            **numbers[row]._asdict(),
            **_explain(model, packed, contributions[row], features, row),
            baseline=baseline,
            residual=_residual(numbers[row], baseline, contributions[row]),
            steer=merged.steer,
            tokens=_credit_tokens(model, residuals, packed, factors[row], baseline, decode),
            length_control=merged.length_control,
        )
        for row, (packed, merged) in enumerate(zip(jobs, profiles, strict=True))
    ]


def _residual(numbers: explanations.RewardNumbers, baseline: float, contributions: Tensor) -> float:
    """Return the rounding error of the explanation: the reward minus everything that explains it."""
    return numbers.reward - baseline - float(contributions.sum()) - numbers.length_correction


def _explain(
    model: RewardModel, packed: PackedJob, contributions: Tensor, features: ResponseFeatures, row: int
) -> dict[str, Any]:
    """Return the fields of `Score` that explain a reward by features and clusters."""
    with_clusters = packed.job.options.clusters
    return {
        "features": explanations.select_top_contributions(
            model, contributions, features, row, packed.num_features
        ),
        "clusters": explanations.sum_clusters(model, contributions) if with_clusters else (),
        "projections": features.projections[row].numpy(),
        "activations": features.activations[row].numpy(),
    }


def _pool_features(model: RewardModel, residuals: Residuals, jobs: Sequence[PackedJob]) -> ResponseFeatures:
    rows = [packed.pooled_rows(model.card.readout) for packed in jobs]
    lengths = [len(job_rows) for job_rows in rows]
    return compute_response_features(model.dictionary, residuals.at(np.concatenate(rows)), lengths)


def _credit_tokens(
    model: RewardModel,
    residuals: Residuals,
    packed: PackedJob,
    factors: Tensor,
    baseline: float,
    decode: Callable[[Sequence[int]], list[str]],
) -> tuple[TokenCredit, ...] | None:
    """Return how much each response token changed the reward so far, or None if not requested."""
    if packed.job.options.explain is not Explain.TOKENS:
        return None
    pooling, encoded = model.card.readout, packed.job.encoded
    projections = model.dictionary.project(residuals.at(packed.credited_rows(pooling)))
    x = model.head.standardise(pool_prefixes(pooling, projections)) * factors
    rewards = model.head.score_members(x).mean(1).tolist()
    changes = [after - before for before, after in zip([baseline, *rewards], rewards, strict=False)]
    start, end = credited_span(pooling, encoded)
    texts = decode(encoded.ids[start:end])
    return tuple(TokenCredit(text, credit) for text, credit in zip(texts, changes, strict=True))
