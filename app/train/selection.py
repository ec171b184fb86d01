"""Which latents speak about the preference: the difference of firing frequency, and how far to trust it.

mu is the share of read tokens on which a latent fires, averaged over the responses of a side; for a
read-out of one token this is the share of responses, as in the paper. A thousand pairs leave noise in it,
so the choice is repeated with sides swapped at random (what chance alone selects) and on bootstrap samples
(what another thousand pairs would select).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

REPEATS = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected latents, +1 where preferred responses fire them more, and the evidence for each.

    `stability` is the share of bootstrap samples that select a latent on the same side;
    `false_discovery` the share of the selected that chance would select as strongly;
    `overlap` the mean Jaccard overlap of a bootstrap sample's choice with this one.
    """

    latents: Tensor
    signs: Tensor
    difference: Tensor
    stability: Tensor
    false_discovery: float
    overlap: float


def select_latents(firing: Tensor, groups: list[str], k: int, *, seed: int = 0) -> Selection:
    """The k latents preferred responses fire most in excess, and the k rejected ones do."""
    generator = torch.Generator().manual_seed(seed)
    apart = firing[:, 0].float() - firing[:, 1].float()
    names = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    place = torch.tensor([names[group] for group in groups])
    sums = torch.zeros(len(names), apart.shape[1]).index_add_(0, place, apart)
    difference = apart.mean(0)
    latents, signs = _extremes(difference, k)
    chance = _swapped(sums, len(apart), generator)
    votes, overlap = _votes(sums, place.bincount(), difference, k, generator)
    return Selection(
        latents,
        signs,
        difference[latents],
        torch.where(signs > 0, votes[0, latents], votes[1, latents]),
        _false_discovery(chance, difference, k),
        overlap,
    )


def _extremes(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = difference.argsort(descending=True, stable=True)
    latents = torch.cat([order[:k], order.flip(0)[:k]])
    return latents, torch.cat([torch.ones(k), -torch.ones(k)])


def _swapped(sums: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Differences when every prompt group's sides are swapped at random: what no preference looks like."""
    flips = torch.randint(0, 2, (REPEATS, len(sums)), generator=generator).float() * 2 - 1
    return flips @ sums / pairs


def _false_discovery(chance: Tensor, difference: Tensor, k: int) -> float:
    """How many latents chance puts beyond the weakest selected one, as a share of the selected."""
    high, low = difference.topk(k).values.min(), (-difference).topk(k).values.min()
    beyond = ((chance >= high) | (-chance >= low)).sum(1).float().mean()
    return float((beyond / (2 * k)).clamp(max=1))


def _votes(
    sums: Tensor, sizes: Tensor, difference: Tensor, k: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """How often bootstrap samples of prompt groups select each latent, by side, and their overlap."""
    draws = torch.randint(len(sums), (REPEATS, len(sums)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(sums)) for draw in draws]).float()
    drawn = counts @ sums / (counts @ sizes.float())[:, None]
    sides = torch.stack([_chosen(drawn, k), _chosen(-drawn, k)])
    ours = torch.stack([_chosen(difference[None], k), _chosen(-difference[None], k)])
    both = (sides & ours).sum((0, 2)).float()
    return sides.float().mean(1), float((both / (4 * k - both)).mean())


def _chosen(scores: Tensor, k: int) -> Tensor:
    """A mask of the k largest in each row."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k).indices, True)  # noqa: FBT003 # torch takes the value so
