"""The head: an ensemble trained together by margin loss on bootstrap samples of prompt groups.

Afterwards each member is shifted and scaled so that its training rewards have mean 0 and deviation 1:
a reward reads as "deviations from a typical training response", and members can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from app.model.head import Calibration, Head

QUANTILES = 201
Loss = Callable[[Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "margin": lambda margins: (1 - margins).relu(),
    "bradley-terry": lambda margins: -logsigmoid(margins),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a head is trained."""

    heads: int = 8
    hidden: int = 512
    loss: str = "margin"
    epochs: int = 60
    batch: int = 128
    lr: float = 5e-4
    weight_decay: float = 0.05
    seed: int = 0


def fit(projections: Tensor, groups: list[str], plan: Plan, report: Callable[[int], None]) -> Head:
    """Train E heads on (N, 2, K) projections of chosen and rejected responses."""
    generator = torch.Generator().manual_seed(plan.seed)
    flat = projections.flatten(0, 1)
    center, scale = flat.mean(0), flat.std(0).clamp(min=1e-6)
    x = (projections - center) / scale
    weights = _bootstrap(groups, plan.heads, generator)
    members = _initial(x.shape[2], plan, generator)
    optimizer = torch.optim.AdamW(members, lr=plan.lr, weight_decay=plan.weight_decay)
    for epoch in range(plan.epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), plan.batch):
            chosen, rejected = (_rewards(x[rows, side], members) for side in (0, 1))
            loss = (LOSSES[plan.loss](chosen - rejected) * weights[rows]).mean(0).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
            optimizer.step()
        report(epoch + 1)
    w1, b1, w2, b2 = (tensor.detach() for tensor in members)
    return _standardised(Head(center, scale, w1.half(), b1, w2, b2), flat)


def calibrate(head: Head, fitted: Tensor, held_out: Tensor) -> Calibration:
    """Temperature, percentiles and distances, from pairs whose prompts the head has not seen."""
    x = head.standardise(fitted.flatten(0, 1))
    unseen = head.standardise(held_out.flatten(0, 1))
    rewards = head.members(unseen).mean(1)
    whitening = _whitening(x)
    ranks = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    margins = rewards.reshape(-1, 2)
    return Calibration(
        _temperature(margins[:, 0] - margins[:, 1]),
        torch.quantile(rewards, ranks),
        whitening,
        torch.quantile((unseen @ whitening).norm(dim=1), ranks),
    )


def _bootstrap(groups: list[str], heads: int, generator: torch.Generator) -> Tensor:
    """How often each pair counts for each head, (N, E): whole prompt groups are drawn."""
    names = sorted(set(groups))
    place = torch.tensor([names.index(group) for group in groups])
    draws = torch.randint(len(names), (heads, len(names)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(names)) for draw in draws]).float()
    return counts.T[place]


def _initial(k: int, plan: Plan, generator: torch.Generator) -> list[Tensor]:
    shapes = [
        (plan.heads, plan.hidden, k),
        (plan.heads, plan.hidden),
        (plan.heads, plan.hidden),
        (plan.heads,),
    ]
    fan_in = [k, k, plan.hidden, plan.hidden]
    return [
        ((torch.rand(shape, generator=generator) * 2 - 1) / fan**0.5).requires_grad_()
        for shape, fan in zip(shapes, fan_in, strict=True)
    ]


def _rewards(x: Tensor, members: list[Tensor]) -> Tensor:
    w1, b1, w2, b2 = members
    hidden = (torch.einsum("bk,ehk->beh", x, w1) + b1).relu()
    return torch.einsum("beh,eh->be", hidden, w2) + b2


def _standardised(head: Head, flat: Tensor) -> Head:
    exact = head.to(torch.device("cpu"))
    rewards = exact.members(exact.standardise(flat))
    mean, deviation = rewards.mean(0), rewards.std(0)
    w2, b2 = exact.w2 / deviation[:, None], (exact.b2 - mean) / deviation
    return Head(head.center, head.scale, head.w1, head.b1, w2.float(), b2.float()).to(torch.device("cpu"))


def _whitening(x: Tensor) -> Tensor:
    """A matrix whose product with x has identity covariance; a tenth of shrinkage keeps it stable."""
    covariance = x.T @ x / len(x)
    ridge = 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype)
    values, vectors = torch.linalg.eigh(0.9 * covariance + ridge)
    whitening: Tensor = vectors / values.sqrt()
    return whitening


def _temperature(margins: Tensor) -> float:
    """The T that makes sigmoid(margin / T) most likely, by search on a fine grid."""
    grid = torch.logspace(-2, 2, 801, dtype=torch.float64)
    scaled = margins[None] / grid[:, None]
    nll = binary_cross_entropy_with_logits(scaled, torch.ones_like(scaled), reduction="none").mean(1)
    return float(grid[nll.argmin()])
