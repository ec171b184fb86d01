"""Pairwise losses that a head can be trained with, by the name used in a head's configuration.

A loss takes the rewards of the chosen and of the rejected responses, (N, E) each, and the margin gamma, a
scalar or (E,); it returns the loss of every pair under every ensemble member, (N, E). To add one, write the
function and list it in LOSSES.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def margin_loss(chosen: Tensor, rejected: Tensor, gamma: Tensor) -> Tensor:
    """Return the hinge loss: zero where the chosen response leads by at least `gamma`."""
    return (gamma - chosen + rejected).relu()


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, _gamma: Tensor) -> Tensor:
    """Return the negative log-likelihood of the preference in the Bradley-Terry model."""
    return -logsigmoid(chosen - rejected)


def pointwise_bce_loss(chosen: Tensor, rejected: Tensor, _gamma: Tensor) -> Tensor:
    """Return the binary cross-entropy of each response alone: chosen is labelled 1, rejected 0."""
    return -(logsigmoid(chosen) + logsigmoid(-rejected)) / 2


LOSSES: dict[str, LossFunction] = {
    "margin": margin_loss,
    "bradley-terry": bradley_terry_loss,
    "bce": pointwise_bce_loss,
}
