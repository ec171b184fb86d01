"""The comparison of two scores of one model: how far the rewards are apart, and why."""

from dataclasses import dataclass

from app.reward.engine import Engine
from app.types import Contribution, Score

MAX_FEATURES = 10**6  # more than any model has: the residual needs all contributions


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of the chosen and of the rejected response, and all contributions to their difference.

    margin == sum of all contributions + length_correction - penalty + residual.
    """

    chosen: Score
    rejected: Score
    probability: float | None
    contributions: tuple[Contribution, ...]
    top_k: int
    truncated: bool

    @property
    def margin(self) -> float:
        """The chosen response's reward minus the rejected one's."""
        return self.chosen.reward - self.rejected.reward

    @property
    def uncertainty(self) -> float:
        """The uncertainty of the margin if the errors of the rewards are independent."""
        return float((self.chosen.uncertainty**2 + self.rejected.uncertainty**2) ** 0.5)

    @property
    def distance(self) -> float:
        """The larger distance of the two."""
        return max(self.chosen.distance, self.rejected.distance)

    @property
    def length_correction(self) -> float:
        """How much the length corrections add to the margin."""
        return self.chosen.length_correction - self.rejected.length_correction

    @property
    def penalty(self) -> float:
        """How much the penalties take from the margin."""
        return self.chosen.penalty - self.rejected.penalty

    @property
    def residual(self) -> float:
        """The part of the margin that neither contributions nor length correction nor penalty explain."""
        explained = sum(share.contribution for share in self.contributions)
        return self.margin - self.length_correction + self.penalty - explained

    @property
    def features(self) -> tuple[Contribution, ...]:
        """The largest contributions."""
        return self.contributions[: self.top_k]


def compare_scores(
    engine: Engine, chosen: Score, rejected: Score, *, top_k: int, truncated: bool
) -> Comparison:
    """Return the comparison of two scores, made by one model of the engine; `top_k` features are shown."""
    probability = engine.compute_preference_probability(chosen.model, chosen.reward - rejected.reward)
    contributions = engine.explain_margin(chosen, rejected, MAX_FEATURES)
    return Comparison(chosen, rejected, probability, contributions, top_k, truncated)
