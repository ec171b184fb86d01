"""Baselines that a trained model is compared with: other methods, trained and tested on the same pairs.

Every method takes the comparison data, trains on the training pairs, and returns its margins on the test
pairs. All heads are trained alike, on augmented pairs too if there are any, so that a difference in accuracy
comes from their inputs. The ridge of linear heads is chosen for each method by cross-validation.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from app.evaluate.accuracy import ScoredPairs, accuracy_difference, bootstrap_mean, pair_wins
from app.evaluate.baselines import length_margins, linear_probe_margins, tfidf_margins
from app.reward.directions import Dictionary
from app.train.augmentation.pairs import AugmentedPairs
from app.train.features import PairFeatures
from app.train.head.common import compute_rewards
from app.train.head.fitting import HeadConfig, fit_head
from app.train.head.linear import LinearHeadConfig
from app.train.head.linear_tuning import tune_linear
from app.train.head.training_set import TrainingSet
from app.train.selection import LatentSource, Selection, SelectionData
from app.types import Pair, Pooling, Progress


@dataclass(frozen=True, slots=True)
class ComparisonData:
    """Training and test pairs with their features, and the choices in which methods may differ."""

    train_pairs: list[Pair]
    train_features: PairFeatures
    test_pairs: list[Pair]
    test_features: PairFeatures
    latents: LatentSource
    layer: int
    pooling: Pooling
    k: int
    config: HeadConfig
    augmented: AugmentedPairs | None = None

    @property
    def groups(self) -> list[str]:
        """Prompt groups of the training pairs."""
        return [pair.group for pair in self.train_pairs]

    @property
    def width(self) -> int:
        """The size of a residual."""
        return self.train_features.residuals[self.layer].shape[2]

    @property
    def residuals(self) -> tuple[Tensor, Tensor]:
        """Pooled residuals of the training and of the test pairs, (N, 2, D)."""
        return (
            self.train_features.pooled_residuals(self.layer, self.pooling),
            self.test_features.pooled_residuals(self.layer, self.pooling),
        )

    def select(self) -> tuple[Selection, Dictionary]:
        """Return the latents that the method selects on the training pairs."""
        data = SelectionData(self.train_features, self.groups, self.k, self.config.seed)
        return data.select(self.latents)

    def find_signs(self, directions: Tensor) -> Tensor:
        """Return +1 for each direction on which chosen responses project further on average, else -1."""
        chosen, rejected = (self.residuals[0] @ directions.T).mean(0)
        return torch.where(chosen > rejected, 1.0, -1.0)


BaselineMethod = Callable[[ComparisonData], Tensor]


def ignore(_: float) -> None:
    """Report no progress."""


def train_on_whole_residual(data: ComparisonData) -> Tensor:
    """Train the same head on the whole residual vector."""
    return train_on_projections(data, torch.eye(data.width))


def train_linear_probe(data: ComparisonData) -> Tensor:
    """Train a logistic regression on the residual vector."""
    train, test = data.residuals
    return linear_probe_margins(train, data.groups, test)


def train_on_random_directions(data: ComparisonData) -> Tensor:
    """Train the same head on as many random directions, each signed by the side that is further on it."""
    generator = torch.Generator().manual_seed(data.config.seed)
    directions = normalize(torch.randn(2 * data.k, data.width, generator=generator), dim=1)
    return train_on_projections(data, directions, data.find_signs(directions))


def train_on_sae_activations(data: ComparisonData) -> Tensor:
    """Train the same head on the activations of the selected latents instead of the projections."""
    selection, _ = data.select()

    def get_activations(features: PairFeatures) -> Tensor:
        return data.latents.activations(features)[..., selection.latents]

    return _train_head(data, get_activations, torch.eye(len(selection.latents)), selection.signs)


def train_on_selected_directions(data: ComparisonData) -> Tensor:
    """Train the head on the selected directions, without passages and directions that have no sign."""
    selection, dictionary = data.select()
    return train_on_projections(data, dictionary.directions, selection.signs)


def train_tfidf(data: ComparisonData) -> Tensor:
    """Train a logistic regression on the TF-IDF of the response."""
    return tfidf_margins(data.train_pairs, data.test_pairs)


def prefer_longer_response(data: ComparisonData) -> Tensor:
    """Prefer the longer response; nothing is trained."""
    return length_margins(data.test_features.lengths())


def train_on_projections(data: ComparisonData, basis: Tensor, signs: Tensor | None = None) -> Tensor:
    """Train a head on projections of the residuals on any basis (K, D); a linear head uses the signs."""
    return _train_head(
        data, lambda features: features.pooled_residuals(data.layer, data.pooling), basis, signs
    )


def _train_head(
    data: ComparisonData,
    get_vectors: Callable[[PairFeatures], Tensor],
    basis: Tensor,
    signs: Tensor | None,
) -> Tensor:
    training_set = TrainingSet.from_vectors(
        get_vectors(data.train_features), basis, data.groups,
        token_counts=data.train_features.lengths(), signs=signs,
    )  # fmt: skip
    if data.augmented:
        projections = get_vectors(data.augmented.features) @ basis.T
        lengths = data.augmented.features.lengths()
        training_set = training_set.with_augmented(projections, data.augmented.groups, lengths)
    config = data.config
    if isinstance(config, LinearHeadConfig):
        config = tune_linear(training_set, replace(config, rest_ridge=LinearHeadConfig().rest_ridge), ignore)
    head = fit_head(training_set, config, ignore)
    rewards = compute_rewards(head, get_vectors(data.test_features) @ basis.T)
    return rewards[:, 0] - rewards[:, 1]


BASELINES: dict[str, BaselineMethod] = {
    "same head on the whole residual": train_on_whole_residual,
    "linear probe on the residual": train_linear_probe,
    "selected directions alone": train_on_selected_directions,
    "same head on random directions": train_on_random_directions,
    "same head on SAE activations": train_on_sae_activations,
    "TF-IDF of the response": train_tfidf,
    "longer response wins": prefer_longer_response,
}
"""The baselines of a model's report, by the name they have there."""


def compare_baselines(data: ComparisonData, scored: ScoredPairs, progress: Progress) -> dict[str, Any]:
    """Return the accuracy of every baseline, and the lead over it of the model whose rewards are `scored`."""
    results: dict[str, Any] = {}
    for done, (baseline, method) in enumerate(BASELINES.items()):
        progress("baselines", done / len(BASELINES))
        wins = pair_wins(method(data))
        lead = accuracy_difference(pair_wins(scored.margins), wins, scored.groups)
        results[baseline] = {**asdict(bootstrap_mean(wins, scored.groups)), "lead": asdict(lead)}
    progress("baselines", 1.0)
    return results
