"""Selects the latents whose firing rate differs most between chosen and rejected responses.

The firing rate of a side is the share of pooled tokens on which a latent fires, averaged over the responses
of that side; if one token is pooled, this is the share of responses, as in the paper. With a thousand pairs
the rates are noisy. So the selection is repeated with sides swapped at random, which shows what chance alone
selects, and on bootstrap samples, which show what another thousand pairs would select.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.errors import DataError
from app.reward.directions import Dictionary
from app.train.features import PairFeatures
from app.types import Pooling, SaeInput

CPU = torch.device("cpu")
NUM_RESAMPLES = 200
"""Random swaps, and bootstrap samples, that a selection is compared with."""


@dataclass(frozen=True, slots=True)
class LatentSource:
    """The latents that features are selected from, and what they encode."""

    dictionary: Dictionary
    sae_input: SaeInput
    layer: int
    pooling: Pooling

    def firing_rates(self, features: PairFeatures) -> Tensor:
        """Return the share of the pooled tokens on which each latent fires, (N, 2, F).

        A latent of an SAE of responses fires on a response or not, so the share is 1 or 0.
        """
        if self.sae_input is SaeInput.TOKENS:
            return features.firing_rates(self.pooling)
        return (self._encode(features) > 0).half()

    def activations(self, features: PairFeatures) -> Tensor:
        """Return the activation of each latent on each response, its mean over pooled tokens, (N, 2, F)."""
        if self.sae_input is SaeInput.TOKENS:
            return features.mean_activations(self.pooling).float()
        return self._encode(features)

    def _encode(self, features: PairFeatures) -> Tensor:
        residuals = features.pooled_residuals(self.layer, self.pooling)
        return self.dictionary.encode(residuals.flatten(0, 1)).reshape(*residuals.shape[:2], -1)


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected latents (2k), their signs, and the evidence for each.

    `signs` is +1 where chosen responses fire the latent more. `difference` is the chosen minus the rejected
    firing rate. `stability` is the share of bootstrap samples that select the latent on the same side,
    `false_discovery` the share of the selected latents that chance would select as strongly, and `overlap`
    the mean Jaccard overlap of a bootstrap sample's selection with this one.
    """

    latents: Tensor
    signs: Tensor
    difference: Tensor
    stability: Tensor
    false_discovery: float
    overlap: float

    def without_contradictions(self) -> "Selection":
        """Return the selection without latents that fire no more often on the side of their sign."""
        agrees = self.signs * self.difference > 0
        if not agrees.any():
            raise DataError("no latent fires more often on preferred or on rejected responses")
        return replace(
            self, latents=self.latents[agrees], signs=self.signs[agrees],
            difference=self.difference[agrees], stability=self.stability[agrees],
        )  # fmt: skip


def select_latents(firing_rates: Tensor, groups: list[str], k: int, *, seed: int = 0) -> Selection:
    """Select the k latents that fire most in excess on chosen responses, and the k on rejected ones.

    `firing_rates` is (N, 2, F), `groups` the prompt group of each pair.
    """
    generator = torch.Generator().manual_seed(seed)
    differences = firing_rates[:, 0].float() - firing_rates[:, 1].float()
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    group_index = torch.tensor([index[group] for group in groups])
    group_sums = torch.zeros(len(index), differences.shape[1]).index_add_(0, group_index, differences)
    difference = differences.mean(0)
    latents, signs = _select_extremes(difference, k)
    by_chance = _swap_sides(group_sums, len(differences), generator)
    selection_rates, overlap = _select_on_bootstrap_samples(
        group_sums, group_index.bincount(), difference, k, generator
    )
    return Selection(
        latents,
        signs,
        difference[latents],
        torch.where(signs > 0, selection_rates[0, latents], selection_rates[1, latents]),
        _compute_false_discovery(by_chance, difference, k),
        overlap,
    )


def _select_extremes(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest and the k smallest latents, and their signs."""
    order = difference.argsort(descending=True, stable=True)
    latents = torch.cat([order[:k], order.flip(0)[:k]])
    return latents, torch.cat([torch.ones(k), -torch.ones(k)])


def _swap_sides(group_sums: Tensor, num_pairs: int, generator: torch.Generator) -> Tensor:
    """Return differences (R, F) after the sides of each prompt group are swapped at random."""
    flips = torch.randint(0, 2, (NUM_RESAMPLES, len(group_sums)), generator=generator).float() * 2 - 1
    return flips @ group_sums / num_pairs


def _compute_false_discovery(by_chance: Tensor, difference: Tensor, k: int) -> float:
    """Return how many latents chance puts beyond the weakest selected one, as a share of the selected."""
    high, low = difference.topk(k).values.min(), (-difference).topk(k).values.min()
    num_beyond = ((by_chance >= high) | (-by_chance >= low)).sum(1).float().mean()
    return float((num_beyond / (2 * k)).clamp(max=1))


def _select_on_bootstrap_samples(
    group_sums: Tensor, group_sizes: Tensor, difference: Tensor, k: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Select on bootstrap samples of prompt groups.

    Returns the share of samples that select each latent, by side (2, F), and the mean overlap with the
    selection on all pairs.
    """
    draws = torch.randint(len(group_sums), (NUM_RESAMPLES, len(group_sums)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(group_sums)) for draw in draws]).float()
    resampled = counts @ group_sums / (counts @ group_sizes.float())[:, None]
    sides = torch.stack([_mask_largest(resampled, k), _mask_largest(-resampled, k)])
    selected = torch.stack([_mask_largest(difference[None], k), _mask_largest(-difference[None], k)])
    common = (sides & selected).sum((0, 2)).float()
    return sides.float().mean(1), float((common / (4 * k - common)).mean())


def _mask_largest(scores: Tensor, k: int) -> Tensor:
    """Return a mask of the k largest values in each row."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k).indices, True)  # noqa: FBT003 # torch's argument is positional


@dataclass(frozen=True, slots=True)
class SelectionData:
    """Training pairs with their prompt groups, and how latents are selected on them."""

    features: PairFeatures
    groups: list[str]
    k: int
    seed: int

    def select(self, source: LatentSource) -> tuple[Selection, Dictionary]:
        """Return up to k latents of each sign by the difference of firing rates, and their directions."""
        num_latents = len(source.dictionary.bias)
        if 2 * self.k > num_latents:
            raise DataError(
                f"{self.k} directions of each sign need {2 * self.k} latents, but the SAE has {num_latents}; "
                "choose fewer with --k, or more latents (--latents for features of responses)"
            )
        firing_rates = source.firing_rates(self.features)
        selection = select_latents(firing_rates, self.groups, self.k, seed=self.seed)
        selection = selection.without_contradictions()
        return selection, source.dictionary.to(CPU).select(selection.latents).orthogonalize()
