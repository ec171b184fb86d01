"""The head: an ensemble trained together by margin loss on bootstrap samples of prompt groups.

With a thousand pairs the danger is fitting their noise. So inputs are partly whitened and dropped at random,
and how long and how gently to train is settled by cross-validation over prompts. Afterwards each member is
shifted and scaled so that its training rewards have mean 0 and deviation 1: a reward reads as "deviations
from a typical training response", and members can be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from app.model.head import Calibration, Head
from app.pairs import chance

QUANTILES = 201
FOLDS = 3
RATES, DECAYS, GAMMAS = (3e-4, 1e-3), (0.3, 3.0), (1.0, 3.0)
EPOCHS = (5, 10, 20, 30, 45, 60)
Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "margin": lambda chosen, rejected, gamma: (gamma - chosen + rejected).relu(),
    "bradley-terry": lambda chosen, rejected, _: -logsigmoid(chosen - rejected),
    "bce": lambda chosen, rejected, _: -(logsigmoid(chosen) + logsigmoid(-rejected)) / 2,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a head is trained; `whitening` is the ridge, in mean variances, that keeps it partial."""

    heads: int = 8
    hidden: int = 256
    loss: str = "margin"
    gamma: float = 1.0
    epochs: int = 40
    batch: int = 128
    lr: float = 5e-4
    weight_decay: float = 1.0
    dropout: float = 0.5
    whitening: float = 3.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Projections as training sees them, and how to get there: standardised, then partly whitened."""

    x: Tensor
    center: Tensor
    scale: Tensor
    mixing: Tensor


def tune(projections: Tensor, groups: list[str], plan: Plan, report: Callable[[float], None]) -> Plan:
    """The plan whose heads, trained without a third of the prompts, predict that third best."""
    inputs = _inputs(projections, plan)
    fold = torch.tensor([int(chance(f"{plan.seed}/fold/{group}") * FOLDS) for group in groups])
    weights = torch.stack([(fold != f).float() for f in range(FOLDS)], dim=1)
    options = [
        replace(plan, lr=lr, weight_decay=decay, gamma=gamma, epochs=max(EPOCHS))
        for lr, decay, gamma in product(RATES, DECAYS, GAMMAS if plan.loss == "margin" else GAMMAS[:1])
    ]
    best, least = plan, float("inf")
    for done, tried in enumerate(options, 1):
        for epoch, members in _descend(inputs.x, weights, tried):
            if epoch in EPOCHS:
                with torch.no_grad():
                    chosen, rejected = _sides(inputs.x, members)
                unseen = (chosen - rejected)[torch.arange(len(fold)), fold]
                if _surprise(unseen.double()) < least:
                    best, least = replace(tried, epochs=epoch), _surprise(unseen.double())
        report(done / len(options))
    return best


def fit(projections: Tensor, groups: list[str], plan: Plan, report: Callable[[int], None]) -> Head:
    """Train E heads on (N, 2, K) projections of chosen and rejected responses."""
    inputs = _inputs(projections, plan)
    members: list[Tensor] = []
    for epoch, members in _descend(inputs.x, _bootstrap(groups, plan), plan):  # noqa: B007 # the last ones stay
        report(epoch)
    w1, b1, w2 = (tensor.detach() for tensor in members)
    mixed = (w1.transpose(1, 2) @ inputs.mixing.T).half()
    head = Head(inputs.center, inputs.scale, mixed, b1[:, 0], w2[..., 0], torch.zeros(plan.heads))
    return _standardised(head, projections.flatten(0, 1))


def rewards(head: Head, projections: Tensor) -> Tensor:
    """The ensemble's rewards of (N, 2, K) projections, (N, 2)."""
    return head.members(head.standardise(projections.flatten(0, 1))).mean(1).reshape(-1, 2)


def calibrate(head: Head, fitted: Tensor, held_out: Tensor) -> Calibration:
    """Temperature, percentiles and distances, from pairs whose prompts the head has not seen."""
    x = head.standardise(fitted.flatten(0, 1))
    unseen = head.standardise(held_out.flatten(0, 1))
    rewards = head.members(unseen).mean(1)
    whitening = _whitening(x)
    ranks = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    margins = rewards.reshape(-1, 2)
    return Calibration(
        temperature(margins[:, 0] - margins[:, 1]),
        torch.quantile(rewards, ranks),
        whitening,
        torch.quantile((unseen @ whitening).norm(dim=1), ranks),
    )


def temperature(margins: Tensor) -> float:
    """The T that makes sigmoid(margin / T) most likely, by search on a fine grid."""
    grid = torch.logspace(-2, 2, 801, dtype=torch.float64)
    return float(grid[_losses(margins, grid).argmin()])


def _surprise(margins: Tensor) -> float:
    """Log loss of the margins at their best temperature: smoother than accuracy, blind to scale."""
    return float(_losses(margins, torch.logspace(-2, 2, 81, dtype=torch.float64)).min())


def _losses(margins: Tensor, temperatures: Tensor) -> Tensor:
    scaled = margins[None] / temperatures[:, None]
    return binary_cross_entropy_with_logits(scaled, torch.ones_like(scaled), reduction="none").mean(1)


def _inputs(projections: Tensor, plan: Plan) -> Inputs:
    flat = projections.flatten(0, 1)
    center, scale = flat.mean(0), flat.std(0).clamp(min=1e-6)
    x = (projections - center) / scale
    flat = x.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    softened = (values.clamp(min=0) + plan.whitening * values.mean()).sqrt()
    mixing = (vectors / softened @ vectors.T).float() * (1 + plan.whitening) ** 0.5
    return Inputs(x @ mixing, center, scale, mixing)


def _descend(x: Tensor, weights: Tensor, plan: Plan) -> Iterator[tuple[int, list[Tensor]]]:
    """Train one head a column of `weights` (N, E); yields the epoch and the members after it."""
    generator = torch.Generator().manual_seed(plan.seed)
    members = _initial(weights.shape[1], x.shape[2], plan, generator)
    optimizer = torch.optim.AdamW(members, lr=plan.lr, weight_decay=plan.weight_decay)
    for epoch in range(plan.epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), plan.batch):
            kept = torch.rand(len(rows), 1, x.shape[2], generator=generator) >= plan.dropout
            sides = _sides(x[rows] * kept / (1 - plan.dropout), members)
            loss = (LOSSES[plan.loss](*sides, plan.gamma) * weights[rows]).mean(0).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
            optimizer.step()
        yield epoch + 1, members


def _sides(x: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and rejected under every member, (N, E) each."""
    w1, b1, w2 = members
    chosen, rejected = (((side @ w1 + b1).relu() @ w2)[..., 0].T for side in x.unbind(1))
    return chosen, rejected


def _bootstrap(groups: list[str], plan: Plan) -> Tensor:
    """How often each pair counts for each head, (N, E): whole prompt groups are drawn."""
    generator = torch.Generator().manual_seed(plan.seed)
    names = {group: i for i, group in enumerate(sorted(set(groups)))}
    draws = torch.randint(len(names), (plan.heads, len(names)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(names)) for draw in draws]).float()
    return counts.T[torch.tensor([names[group] for group in groups])]


def _initial(heads: int, k: int, plan: Plan, generator: torch.Generator) -> list[Tensor]:
    shapes = [(heads, k, plan.hidden), (heads, 1, plan.hidden), (heads, plan.hidden, 1)]
    return [
        ((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5).requires_grad_()
        for shape, fan_in in zip(shapes, (k, k, plan.hidden), strict=True)
    ]


def _standardised(head: Head, flat: Tensor) -> Head:
    exact = head.to(torch.device("cpu"))
    rewards = exact.members(exact.standardise(flat))
    mean, deviation = rewards.mean(0), rewards.std(0).clamp(min=1e-6)
    w2, b2 = exact.w2 / deviation[:, None], (exact.b2 - mean) / deviation
    return Head(head.center, head.scale, head.w1, head.b1, w2.float(), b2.float()).to(torch.device("cpu"))


def _whitening(x: Tensor) -> Tensor:
    """A matrix whose product with x has identity covariance; a tenth of shrinkage keeps it stable."""
    covariance = x.T @ x / len(x)
    ridge = 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype)
    values, vectors = torch.linalg.eigh(0.9 * covariance + ridge)
    whitening: Tensor = vectors / values.sqrt()
    return whitening
