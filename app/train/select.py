"""Which latents speak about the preference: the difference of firing frequency.

mu is the share of read tokens on which a latent fires, averaged over the responses of a side; for a
read-out of one token this is the share of responses, as in the paper.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected latents, +1 where preferred responses fire them more, and the difference itself."""

    latents: Tensor
    signs: Tensor
    difference: Tensor


def select(firing: Tensor, k: int) -> Selection:
    """The k latents preferred responses fire most in excess, and the k rejected ones do."""
    mu = firing.float().mean(0)
    difference = mu[0] - mu[1]
    order = difference.argsort(descending=True)
    latents = torch.cat([order[:k], order.flip(0)[:k]])
    signs = torch.cat([torch.ones(k), -torch.ones(k)])
    return Selection(latents, signs, difference[latents])
