"""One reward model before the residuals of a pass: what it says of each response that asked for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.attention import Rows
from app.backbone.backbone import Residuals
from app.backbone.packing import Packed
from app.reward import explanations
from app.reward.bundle import RewardModel
from app.reward.directions import Reading, read, running, span, steps
from app.types import Explain, Pooling, Profile, Score, ScoreJob, TokenCredit


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and where it stands in a packed row."""

    job: ScoreJob
    place: int
    packed: Packed

    @property
    def shown(self) -> int:
        """How many features the answer shows."""
        return 0 if self.job.options.explain is Explain.NONE else self.job.options.top_k

    def read(self, readout: Pooling) -> Rows:
        """Rows that are pooled."""
        return self.packed.rows(self.place, *span(readout, self.job.encoded))

    def credited(self, readout: Pooling) -> Rows:
        """Rows whose tokens get credit."""
        return self.packed.rows(self.place, *steps(readout, self.job.encoded))

    def needed(self, readout: Pooling) -> Rows:
        """Rows an answer cannot do without; what is credited holds what is pooled."""
        return self.credited(readout) if self.job.options.explain is Explain.TOKENS else self.read(readout)


def judge(
    name: str,
    model: RewardModel,
    profile: Profile,
    *,
    layer: Residuals,
    cases: Sequence[Case],
    decode: Callable[[Sequence[int]], list[str]],
) -> list[Score]:
    """Scores of the cases under this model and profile, in order."""
    wishes = [explanations.wish(case.job.options, model, profile) for case in cases]
    reading = _reading(model, layer, cases)
    plain = model.head.standardise(reading.projections)
    factors = explanations.factors(model, wishes).to(plain.device)
    x = plain * factors
    origin = torch.zeros_like(x[:1])
    baseline = float(model.head.members(origin).mean())
    shares = model.head.contributions(x, origin).cpu()
    encoded = [case.job.encoded for case in cases]
    numbers = explanations.numbers(model, (plain, x), encoded, [one.length_control for one in wishes])
    reading = Reading(*(tensor.cpu() for tensor in reading))
    scores = []
    for at, (case, wished) in enumerate(zip(cases, wishes, strict=True)):
        reward, uncertainty, percentile, distance, correction = numbers[at]
        score = Score(
            model=name,
            reward=reward,
            uncertainty=uncertainty,
            percentile=percentile,
            distance=distance,
            baseline=baseline,
            length_correction=correction,
            residual=reward - baseline - float(shares[at].sum()) - correction,
            steer=wished.steer,
            features=explanations.top(model, shares[at], reading, at, case.shown),
            clusters=explanations.clusters(model, shares[at]) if case.job.options.clusters else (),
            tokens=_credits(model, layer, case, factors[at], baseline, decode),
            projections=reading.projections[at].numpy(),
            activations=reading.activations[at].numpy(),
            length_control=wished.length_control,
        )
        scores.append(score)
    return scores


def _reading(model: RewardModel, layer: Residuals, cases: Sequence[Case]) -> Reading:
    """Pool the residuals this model's read-out wants of each case."""
    rows = [case.read(model.card.readout) for case in cases]
    return read(model.dictionary, layer.at(np.concatenate(rows)), [len(one) for one in rows])


def _credits(
    model: RewardModel,
    layer: Residuals,
    case: Case,
    factors: Tensor,
    baseline: float,
    decode: Callable[[Sequence[int]], list[str]],
) -> tuple[TokenCredit, ...] | None:
    """What each response token added to the running reward, or None where nobody asked."""
    if case.job.options.explain is not Explain.TOKENS:
        return None
    readout, encoded = model.card.readout, case.job.encoded
    path = running(readout, model.dictionary.project(layer.at(case.credited(readout))))
    rewards = model.head.members(model.head.standardise(path) * factors).mean(1).tolist()
    earned = [after - before for before, after in zip([baseline, *rewards], rewards, strict=False)]
    start, stop = steps(readout, encoded)
    texts = decode(encoded.ids[start:stop])
    return tuple(TokenCredit(text, credit) for text, credit in zip(texts, earned, strict=True))
