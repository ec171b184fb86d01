"""Calibration of raw rewards: preference probability, percentile, distance and length correction."""

from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER_PERCENTILE = 99.5
"""Minimum distance percentile of responses shorter or longer than nearly all calibration responses."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tables that make raw rewards comparable, measured on responses to prompts that were not trained on.

    - `temperature` of the preference probability
    - `reward_quantiles` (2, Q): without and with length control
    - `whitening` (K, K) maps standardised projections to axes along which the tokens of a response have
      variance 1; `response_variance` (K) is the variance between responses along each axis
    - `distance_quantiles` (Q)
    - `length_trend` (2, L): knots in log2 tokens, from the 1st to the 99th percentile of lengths, and the
      mean reward at each knot
    - `standardised_deciles` (K, 9) of standardised projections
    """

    temperature: float
    reward_quantiles: Tensor
    whitening: Tensor
    response_variance: Tensor
    distance_quantiles: Tensor
    length_trend: Tensor
    standardised_deciles: Tensor

    def compute_preference_probability(self, margin: float) -> float:
        """Return the probability that people prefer the response whose reward is higher by `margin`."""
        return float(torch.sigmoid(torch.tensor(margin / self.temperature, dtype=torch.float64)))

    def compute_percentile(self, rewards: Tensor, length_controlled: Tensor) -> Tensor:
        """Return the percentage of calibration responses with a lower reward, 0 to 100.

        `length_controlled` (B) says which rewards are length-controlled and need the second table.
        """
        plain, controlled = (_rank(rewards, quantiles) for quantiles in self.reward_quantiles)
        return torch.where(length_controlled, controlled, plain)

    def compute_distance(self, x: Tensor, pooled_tokens: Tensor, response_tokens: Tensor) -> Tensor:
        """Return the percentile of each Mahalanobis distance among those of calibration responses, 0 to 100.

        Responses shorter than the 1st or longer than the 99th percentile of lengths are at least at
        OUTLIER_PERCENTILE, regardless of their content.
        """
        distances = compute_mahalanobis_distance(x, pooled_tokens, self.whitening, self.response_variance)
        percentiles = _rank(distances, self.distance_quantiles)
        lengths = response_tokens.double().log2()
        shortest, longest = self.length_trend[0, 0], self.length_trend[0, -1]
        is_unusual_length = (lengths <= shortest) | (lengths > longest)
        return torch.where(is_unusual_length, percentiles.clamp(min=OUTLIER_PERCENTILE), percentiles)

    def compute_length_correction(self, tokens: Tensor) -> Tensor:
        """Return what length control adds to the rewards of responses with these token counts."""
        return -interpolate(tokens.double().log2(), *self.length_trend)

    def to(self, device: torch.device) -> "Calibration":
        """Return the calibration in float64 on another device."""
        tables = (
            self.reward_quantiles,
            self.whitening,
            self.response_variance,
            self.distance_quantiles,
            self.length_trend,
            self.standardised_deciles,
        )
        return Calibration(self.temperature, *(table.to(device, torch.float64) for table in tables))


def compute_mahalanobis_distance(
    x: Tensor, pooled_tokens: Tensor, whitening: Tensor, response_variance: Tensor
) -> Tensor:
    """Return the Mahalanobis distance of each row of `x`, the mean of `pooled_tokens` tokens of a response.

    Along each whitened axis a mean of n tokens has variance `response_variance` + 1/n.
    """
    variance = response_variance + 1 / pooled_tokens.double()[:, None]
    return ((x @ whitening) ** 2 / variance).sum(1).sqrt()


def interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly through (knots, values); constant beyond the first and last knot."""
    upper = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    low, high = knots[upper - 1], knots[upper]
    fraction = ((at - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return values[upper - 1] + fraction * (values[upper] - values[upper - 1])


def _rank(values: Tensor, quantiles: Tensor) -> Tensor:
    """Return the interpolated percentile, 0 to 100, of each value in a table of evenly spaced quantiles."""
    last = len(quantiles) - 1
    ranks = torch.linspace(0, 100, last + 1, dtype=torch.float64, device=values.device)
    return interpolate(values, quantiles, ranks)
