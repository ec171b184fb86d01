"""The comparison of two scores of one model: how far the rewards are apart, and why."""

from dataclasses import dataclass, replace

from app.reward.engine import Engine
from app.reward.explanation.concepts import subtract_concepts
from app.reward.explanation.why import describe_comparison
from app.scores import ConceptContribution, Contribution, Score, TokenCredit

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
    coverage: float | None
    domain: str
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

    @property
    def concepts(self) -> tuple[ConceptContribution, ...]:
        """The contributions of concepts to the margin; none if the scores were not explained."""
        return subtract_concepts(self.chosen, self.rejected)

    @property
    def why(self) -> str | None:
        """The comparison in words, if the scores were explained."""
        if not self.chosen.concepts:
            return None
        return describe_comparison(self.chosen, self.rejected, self.uncertainty, self.domain)

    @property
    def chosen_tokens(self) -> tuple[TokenCredit, ...]:
        """The shares of the chosen response's tokens in the margin, if they were requested."""
        return self.chosen.tokens or ()

    @property
    def rejected_tokens(self) -> tuple[TokenCredit, ...]:
        """The shares of the rejected response's tokens in the margin, if they were requested."""
        return tuple(replace(token, credit=-token.credit) for token in self.rejected.tokens or ())


def compare_scores(
    engine: Engine, chosen: Score, rejected: Score, *, top_k: int, truncated: bool
) -> Comparison:
    """Return the comparison of two scores, made by one model of the engine; `top_k` features are shown."""
    probability = engine.compute_preference_probability(chosen.model, chosen.reward - rejected.reward)
    contributions = engine.explain_margin(chosen, rejected, MAX_FEATURES)
    coverage = engine.compute_margin_coverage(chosen, rejected) if chosen.concepts else None
    domain = engine.get_domain(chosen.model)
    return Comparison(chosen, rejected, probability, contributions, coverage, domain, top_k, truncated)
