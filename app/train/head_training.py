"""The head: an ensemble trained together by margin loss on bootstrap samples of prompt groups.

With a thousand pairs the danger is fitting their noise. So inputs are evened out and dropped at random,
weights are averaged over the last steps, and how long and how gently to train is settled by cross-validation
over prompts. Drills (bad answers dressed up) are learnt from, at less weight, and measured by nothing: what
is usual is what honest pairs have. Afterwards each member is shifted and scaled so that its training rewards
have mean 0 and deviation 1: a reward reads as "deviations from a typical training response", and members can
be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product
from operator import or_

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from app.data.pairs import hash_to_unit_interval
from app.evaluate.accuracy import log_loss
from app.reward.head import Head
from app.train.parallel import run_in_parallel

TUNING_FOLDS = 3
RATES, DECAYS, GAMMAS = (3e-4, 1e-3), (1.0, 5.0), (1.0, 3.0)
MEMORY = 0.98
EVENNESS = 0.1
DRILL_WEIGHT = 0.4
EPOCHS = (5, 10, 20, 30, 45, 60)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "margin": lambda chosen, rejected, gamma: (gamma - chosen + rejected).relu(),
    "bradley-terry": lambda chosen, rejected, _: -logsigmoid(chosen - rejected),
    "bce": lambda chosen, rejected, _: -(logsigmoid(chosen) + logsigmoid(-rejected)) / 2,
}


@dataclass(frozen=True, slots=True)
class HeadTrainingConfig:
    """How a head is trained; `whitening` is the ridge, in mean variances, that keeps it partial."""

    heads: int = 8
    hidden: int = 256
    loss: str = "margin"
    gamma: float = 1.0
    epochs: int = 40
    batch: int = 128
    lr: float = 5e-4
    weight_decay: float = 3.0
    dropout: float = 0.8
    whitening: float = 30.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What heads learn from: (N, 2, K) projections of chosen and rejected, and each pair's prompt group.

    `drill` (N,) marks the pairs that are drills. `metric` (K, K) is how projections would vary together if
    the residual's coordinates varied alone: what of their correlation is geometry, and not the data's.
    """

    projections: Tensor
    groups: list[str]
    uncorrelated_covariance: Tensor
    is_augmented: Tensor

    @classmethod
    def from_vectors(cls, vectors: Tensor, basis: Tensor, groups: list[str]) -> "TrainingSet":
        """(N, 2, D) vectors projected on the rows of a basis (K, D)."""
        spread = vectors.flatten(0, 1).var(0)
        return cls(vectors @ basis.T, groups, (basis * spread) @ basis.T, torch.zeros(len(groups)).bool())

    def with_augmented(self, projections: Tensor, groups: list[str]) -> "TrainingSet":
        """The same and more pairs, which are drills."""
        return replace(
            self,
            projections=torch.cat([self.projections, projections]),
            groups=self.groups + groups,
            drill=torch.cat([self.is_augmented, torch.ones(len(groups)).bool()]),
        )

    @property
    def original(self) -> "TrainingSet":
        """The pairs that are no drills."""
        return self.subset(~self.is_augmented)

    def subset(self, kept: Tensor) -> "TrainingSet":
        """Some of the pairs, by mask."""
        groups = [group for group, keep in zip(self.groups, kept.tolist(), strict=True) if keep]
        return replace(self, projections=self.projections[kept], groups=groups, drill=self.is_augmented[kept])


@dataclass(frozen=True, slots=True)
class WhitenedInputs:
    """Projections as training sees them, and how to get there: standardised, then mixed."""

    x: Tensor
    center: Tensor
    scale: Tensor
    mixing: Tensor


def tune_config(
    lesson: TrainingSet, plan: HeadTrainingConfig, report: Callable[[float], None]
) -> HeadTrainingConfig:
    """The plan whose heads, trained without a third of the prompts, predict that third best."""
    inputs = _inputs(lesson, plan)
    fold = assign_folds(lesson.groups, TUNING_FOLDS, plan.seed)
    seen = torch.stack([(fold != f).float() for f in range(TUNING_FOLDS)], dim=1) * _weight(lesson)
    gammas = GAMMAS if plan.loss == "margin" else GAMMAS[:1]
    columns = torch.tensor(gammas).repeat_interleave(TUNING_FOLDS)
    options = [
        replace(plan, lr=lr, weight_decay=decay, epochs=max(EPOCHS)) for lr, decay in product(RATES, DECAYS)
    ]

    def tried(option: HeadTrainingConfig) -> dict[HeadTrainingConfig, float]:
        found: dict[HeadTrainingConfig, float] = {}
        for epoch, members in _descend(inputs.x, seen.repeat(1, len(gammas)), option, columns):
            if epoch in EPOCHS:
                chosen, rejected = _sides(inputs.x, members)
                for gamma, apart in zip(
                    gammas, torch.split(chosen - rejected, TUNING_FOLDS, dim=1), strict=True
                ):
                    unseen = apart[torch.arange(len(fold)), fold][~lesson.is_augmented]
                    found[replace(option, gamma=gamma, epochs=epoch)] = log_loss(unseen.double())
        return found

    outcomes = reduce(or_, run_in_parallel([partial(tried, option) for option in options], report))
    return min(outcomes, key=outcomes.__getitem__)


def fit_head(lesson: TrainingSet, plan: HeadTrainingConfig, report: Callable[[int], None]) -> Head:
    """Train E heads."""
    inputs = _inputs(lesson, plan)
    members: list[Tensor] = []
    weights = _bootstrap(lesson.groups, plan) * _weight(lesson)
    gammas = torch.tensor(plan.gamma)
    for epoch, members in _descend(inputs.x, weights, plan, gammas):  # noqa: B007 # the last ones stay
        report(epoch)
    w1, b1, w2 = members
    mixed = (w1.transpose(1, 2) @ inputs.mixing.T).half()
    head = Head(inputs.center, inputs.scale, mixed, b1[:, 0], w2[:, 0], torch.zeros(plan.heads))
    return _standardised(head, lesson.original.projections.flatten(0, 1))


def compute_rewards(head: Head, projections: Tensor) -> Tensor:
    """The ensemble's rewards of (N, 2, K) projections, (N, 2)."""
    return head.score_members(head.standardise(projections.flatten(0, 1))).mean(1).reshape(-1, 2)


def assign_folds(groups: list[str], count: int, seed: int) -> Tensor:
    """A fold for each pair, whole prompt groups together, as even as can be."""
    order = sorted(set(groups), key=lambda group: hash_to_unit_interval(f"{seed}/fold/{group}"))
    fold = {group: at % count for at, group in enumerate(order)}
    return torch.tensor([fold[group] for group in groups])


def _inputs(lesson: TrainingSet, plan: HeadTrainingConfig) -> WhitenedInputs:
    """Projections evened out: first their geometry, then, partly, how the data vary."""
    honest = lesson.original.projections.flatten(0, 1)
    center, scale = honest.mean(0), honest.std(0).clamp(min=1e-6)
    honest = ((honest - center) / scale).double()
    even = _inverse_root(lesson.uncorrelated_covariance.double() / scale.outer(scale), EVENNESS)
    flat = honest @ even
    mixing = even @ _inverse_root(flat.T @ flat / len(flat), plan.whitening)
    mixing = (mixing / (honest @ mixing).std()).float()
    return WhitenedInputs((lesson.projections - center) / scale @ mixing, center, scale, mixing)


def _weight(lesson: TrainingSet) -> Tensor:
    """How much each pair counts, (N, 1)."""
    return torch.where(lesson.is_augmented, DRILL_WEIGHT, 1.0)[:, None]


def _inverse_root(matrix: Tensor, ridge: float) -> Tensor:
    """The inverse square root of a covariance; the ridge, in mean variances, spares its small directions."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors / (values.clamp(min=0) + ridge * values.mean()).sqrt() @ vectors.T
    return root


def _descend(
    x: Tensor, weights: Tensor, plan: HeadTrainingConfig, gammas: Tensor
) -> Iterator[tuple[int, list[Tensor]]]:
    """Train one head a column of `weights` (N, E), each for its γ.

    Yields the epoch and the averaged members after it.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    members = _initial(weights.shape[1], x.shape[2], plan, generator)
    averaged = [member.detach().clone() for member in members]
    steps = 0
    optimizer = torch.optim.AdamW(members, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), plan.batch):
            kept = torch.rand(len(rows), 1, x.shape[2], generator=generator) >= plan.dropout
            sides = _sides(x[rows] * kept / (1 - plan.dropout), members)
            loss = (LOSSES[plan.loss](*sides, gammas) * weights[rows]).mean(0).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
            optimizer.step()
            steps += 1
            for average, member in zip(averaged, members, strict=True):
                average.lerp_(member.detach(), 1 - min(MEMORY, (1 + steps) / (10 + steps)))
        yield epoch + 1, averaged


def _sides(x: Tensor, members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and rejected under every member, (N, E) each."""
    w1, b1, w2 = members
    hidden = torch.baddbmm(b1, x.flatten(0, 1).expand(len(w1), -1, -1), w1).relu()
    chosen, rejected = (hidden * w2).sum(2).T.reshape(len(x), 2, -1).unbind(1)
    return chosen, rejected


def _bootstrap(groups: list[str], plan: HeadTrainingConfig) -> Tensor:
    """How often each pair counts for each head, (N, E): whole prompt groups are drawn."""
    generator = torch.Generator().manual_seed(plan.seed)
    names = {group: i for i, group in enumerate(sorted(set(groups)))}
    draws = torch.randint(len(names), (plan.heads, len(names)), generator=generator)
    counts = torch.stack([draw.bincount(minlength=len(names)) for draw in draws]).float()
    return counts.T[torch.tensor([names[group] for group in groups])]


def _initial(heads: int, k: int, plan: HeadTrainingConfig, generator: torch.Generator) -> list[Tensor]:
    shapes = [(heads, k, plan.hidden), (heads, 1, plan.hidden), (heads, 1, plan.hidden)]
    return [
        ((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5).requires_grad_()
        for shape, fan_in in zip(shapes, (k, k, plan.hidden), strict=True)
    ]


def _standardised(head: Head, flat: Tensor) -> Head:
    exact = head.to(torch.device("cpu"))
    rewards = exact.score_members(exact.standardise(flat))
    mean, deviation = rewards.mean(0), rewards.std(0).clamp(min=1e-6)
    w2, b2 = exact.w2 / deviation[:, None], (exact.b2 - mean) / deviation
    return Head(head.center, head.scale, head.w1, head.b1, w2.float(), b2.float()).to(torch.device("cpu"))
