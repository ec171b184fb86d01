"""Faithfulness of explanations: whether the reward changes as the contributions predict.

Directions are removed from the projections or from the residual stream itself. Removing a direction of a
response means setting its projection to the training mean in all spans of the response, so that only the
baseline remains when all are removed. The weights of the spans are computed again after each removal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from app.reward.head import Head
from app.reward.passages import PassageReading, ResponseSpans, compute_span_weights
from app.reward.reward_model import RewardModel

DELETION_STEPS = (0, 1, 2, 5, 10, 20, 50, 100)
RANDOM_DRAWS = 20
LARGEST_REMOVED = 10
DEFAULT_TOP_K = 5
NEAR_PARALLEL_COSINE = 0.8


@dataclass(frozen=True, slots=True)
class ReadResponses:
    """Responses as a head reads them: their spans, and the spans' standardised projections x (W, K).

    Without a reading of passages, the spans are the whole responses.
    """

    head: Head
    reading: PassageReading | None
    spans: ResponseSpans
    x: Tensor

    @classmethod
    def from_residuals(cls, model: RewardModel, spans: ResponseSpans, residuals: Tensor) -> "ReadResponses":
        """Return the responses as a model reads them, from the pooled residuals of their spans (W, D)."""
        x = model.head.standardise(model.dictionary.project(residuals))
        return cls(model.head, model.card.passages, spans, x)

    def compute_rewards(self) -> Tensor:
        """Return the reward of each response, (B,)."""
        rewards = self._score_spans()
        return self._sum_by_response(rewards, rewards[:, None])[:, 0]

    def compute_contributions(self) -> Tensor:
        """Return the contribution of each direction to the reward of each response, (B, K)."""
        contributions = self.head.compute_contributions(self.x, torch.zeros_like(self.x[:1]))
        return self._sum_by_response(self._score_spans(), contributions)

    def remove(self, indices: Tensor) -> "ReadResponses":
        """Return the responses without some directions of each, (B, n)."""
        return replace(self, x=self.x.scatter(1, indices[self.spans.response_index], 0.0))

    def remove_from_stream(self, k: int, directions: Tensor) -> "ReadResponses":
        """Return the responses after one direction is removed from the residual stream.

        Projections on directions that are not orthogonal to it change, too.
        """
        overlaps = (directions @ directions[k]).double() * self.head.scale[k] / self.head.scale
        return replace(self, x=self.x - self.x[:, k : k + 1] * overlaps)

    def _score_spans(self) -> Tensor:
        """Return the mean reward over the heads of the ensemble of each span, (W,)."""
        return self.head.score_members(self.x).mean(1)

    def _sum_by_response(self, rewards: Tensor, values: Tensor) -> Tensor:
        """Return the sums of the spans' values (W, N), weighted by their rewards (W,), (B, N)."""
        weights = compute_span_weights(self.spans, rewards, self.reading)
        return self.spans.sum_by_response(weights, values)


def evaluate_faithfulness(
    model: RewardModel, spans: ResponseSpans, residuals: Tensor, seed: int = 0
) -> dict[str, Any]:
    """Return measurements of the explanations of responses, given their spans' pooled residuals (W, D)."""
    generator = torch.Generator().manual_seed(seed)
    responses = ReadResponses.from_residuals(model, spans, residuals)
    contributions, rewards = responses.compute_contributions(), responses.compute_rewards()
    baseline = model.head.score_members(torch.zeros_like(responses.x[:1])).mean(1)
    signs = torch.sign(rewards - baseline)[:, None]
    orders = {
        "largest": (contributions * signs).argsort(dim=1, descending=True),
        "random": _random_orders(contributions, generator),
        "smallest": (contributions * signs).argsort(dim=1),
    }
    ratios = _compare_with_random_removal(responses, orders["largest"], generator)
    return {
        "n": len(rewards),
        "deletion": {name: _delete(responses, order, rewards, signs) for name, order in orders.items()},
        "insertion": {name: _insert(responses, order, baseline, signs) for name, order in orders.items()},
        "ten_largest_over_random": float(ratios.median()),
        "ten_largest_at_least_3x": float((ratios >= 3).double().mean()),
        "intervention_spearman": _correlate_with_intervention(responses, model.dictionary.directions),
        "shuffled_head_spearman": _correlate_with_shuffled_head(responses, generator),
        "cancellation": _compute_cancellation(contributions),
        "near_parallel_directions": _count_near_parallel(model.dictionary.directions),
        **_evaluate_shown_features(model, contributions),
        "muting": measure_muting(responses, model.concept_indices),
    }


def measure_muting(
    responses: ReadResponses, concepts: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Return for each concept whether margins change as its contributions say when it is muted.

    The margins are those between successive responses, which answer random prompts. `spearman` compares the
    change of a margin with the concept's contribution to it; `others` is the mean absolute change of the
    other features' contribution to the margin, in standard deviations of rewards. Both differ from 1 and 0
    only by the weights of passages, which follow from the rewards, and by the curvature of networks.
    """
    contributions, rewards = responses.compute_contributions(), responses.compute_rewards()
    count = len(rewards) // 2
    rows = {}
    for name, indices in concepts.items() if count > 1 else ():
        columns = torch.tensor(indices)
        muted = responses.remove(columns.expand(len(rewards), -1))
        expected = _subtract_pairs(contributions[:, columns].sum(1), count)
        change = _subtract_pairs(rewards - muted.compute_rewards(), count)
        if expected.std() == 0 or change.std() == 0:
            continue  # no correlation can be computed
        rows[name] = {
            "spearman": float(spearmanr(expected, change).statistic),
            "others": float((change - expected).abs().mean()),
        }
    return rows


def _subtract_pairs(values: Tensor, count: int) -> Tensor:
    """Return the differences between successive values, (count,)."""
    return values[0 : 2 * count : 2] - values[1 : 2 * count : 2]


def _random_orders(contributions: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random permutation of the directions for each response, (B, K)."""
    return torch.rand(contributions.shape, generator=generator).argsort(dim=1)


def _compare_with_random_removal(
    responses: ReadResponses, largest: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the change by removing the largest contributors over that by removing random ones, (B,)."""
    rewards = responses.compute_rewards()
    change = responses.remove(largest[:, :LARGEST_REMOVED]).compute_rewards() - rewards
    random_changes = [
        responses.remove(_random_orders(largest, generator)[:, :LARGEST_REMOVED]).compute_rewards() - rewards
        for _ in range(RANDOM_DRAWS)
    ]
    return change.abs() / torch.stack(random_changes).abs().mean(0).clamp(min=1e-12)


def _delete(responses: ReadResponses, order: Tensor, rewards: Tensor, signs: Tensor) -> dict[str, float]:
    """Return how far rewards move towards the baseline, in standard deviations, as directions are removed."""
    return {
        str(n): float(((rewards - responses.remove(order[:, :n]).compute_rewards()) * signs[:, 0]).mean())
        for n in DELETION_STEPS
        if n <= order.shape[1]
    }


def _insert(responses: ReadResponses, order: Tensor, baseline: Tensor, signs: Tensor) -> dict[str, float]:
    """Return how far rewards move away from the baseline as directions are added."""
    return {
        str(n): float(((responses.remove(order[:, n:]).compute_rewards() - baseline) * signs[:, 0]).mean())
        for n in DELETION_STEPS
        if n <= order.shape[1]
    }


def _correlate_with_intervention(responses: ReadResponses, directions: Tensor) -> float:
    """Return the median rank correlation of contributions with the effect of removing each direction.

    The direction is removed from the residual stream, and the whole head is evaluated again.
    """
    rewards = responses.compute_rewards()
    effects = [
        rewards - responses.remove_from_stream(k, directions).compute_rewards()
        for k in range(len(directions))
    ]
    return _median_spearman(responses.compute_contributions(), torch.stack(effects, dim=1))


def _correlate_with_shuffled_head(responses: ReadResponses, generator: torch.Generator) -> float:
    """Return the median rank correlation with the contributions of a head whose inputs are shuffled.

    It should be near zero: an explanation has to depend on what the head computes.
    """
    head = responses.head
    order = torch.randperm(responses.x.shape[1], generator=generator)
    shuffled = replace(responses, head=replace(head, w1=head.w1[..., order]))
    return _median_spearman(responses.compute_contributions(), shuffled.compute_contributions())


def _median_spearman(left: Tensor, right: Tensor) -> float:
    correlations = [float(spearmanr(a, b).statistic) for a, b in zip(left, right, strict=True)]
    return float(torch.tensor(correlations).nanmedian())


def _compute_cancellation(contributions: Tensor) -> float:
    """Return the median ratio of the sum of absolute contributions to the absolute sum of contributions."""
    sums = contributions.sum(1).abs().clamp(min=1e-12)
    return float((contributions.abs().sum(1) / sums).median())


def _count_near_parallel(directions: Tensor) -> int:
    """Count the pairs of directions whose absolute cosine exceeds NEAR_PARALLEL_COSINE."""
    cosines = torch.nn.functional.normalize(directions, dim=1)
    return int(((cosines @ cosines.T).abs().triu(1) > NEAR_PARALLEL_COSINE).sum())


def _evaluate_shown_features(model: RewardModel, contributions: Tensor) -> dict[str, Any]:
    """Return how many of the features that a score shows by default have a name, and how good it is."""
    count = min(DEFAULT_TOP_K, contributions.shape[1])
    indices = contributions.abs().topk(count, dim=1).indices.flatten().tolist()
    named = [model.features[k] for k in indices if model.features[k].label_score is not None]
    label_scores = torch.tensor([feature.label_score or 0.0 for feature in named])
    predictive = [feature.projection_predicts_firing for feature in named]
    return {
        "shown_named": len(named) / max(len(indices), 1),
        "shown_tracking": sum(predictive) / len(named) if named else None,
        "shown_name_score": float(label_scores.median()) if named else None,
    }
