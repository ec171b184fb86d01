"""The sentence of the product: one backbone, many reward models; encode, then score.

A job's scores do not depend on the jobs beside it: the backbone sees each item's own tokens only,
and every reading is pooled per item.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.errors import BundleError, InvalidInput, NonFinite, NotFound
from app.model.backbone import Backbone
from app.model.bundle import RewardModel, check_home
from app.model.directions import Reading, read, running, span, steps
from app.model.packing import Packed, pack
from app.model.text import Text
from app.types import (
    Ask,
    Cluster,
    Contribution,
    Encoded,
    Exchange,
    Explain,
    Job,
    Profile,
    Score,
    Scored,
    TokenCredit,
)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class Prepared(NamedTuple):
    """Jobs and the packed row that answers them."""

    jobs: tuple[Job, ...]
    packed: Packed


class Engine:
    """A resident backbone and the reward models that read it."""

    def __init__(self, backbone: Backbone, text: Text, models: Mapping[str, RewardModel]) -> None:
        for model in models.values():
            check_home(model.card, backbone=backbone.digest, template=text.digest)
        self.backbone = backbone
        self.text = text
        self.models = {name: model.to(backbone.device) for name, model in models.items()}

    def encode(self, exchanges: Sequence[Exchange], *, truncate: bool = True) -> list[Encoded]:
        """Exchanges as token ids; InvalidInput names the first that cannot be scored."""
        return self.text.encode(exchanges, truncate=truncate)

    def check(self, ask: Ask) -> None:
        """Refuse what no batch could answer: unknown models and latents."""
        asked = [self.find(name)[0] for name in ask.models]
        for key in ask.steer:
            if not any(model.places(key) for model in asked):
                raise InvalidInput(
                    f"{key!r} is neither a latent nor a cluster of {', '.join(ask.models)}",
                    f"steer.{key}",
                    "unknown_latent",
                )

    def find(self, name: str) -> tuple[RewardModel, Profile]:
        """A model by name, and the profile named after an @."""
        base, at, profile = name.partition("@")
        model = self.models.get(base)
        if model is None or (at and profile not in model.profiles):
            raise NotFound(f"no model {name!r}; there are: {', '.join(self.names)}", "model", "unknown_model")
        return model, model.profiles[profile] if at else Profile()

    @property
    def names(self) -> list[str]:
        """Everything that can be asked for: models, and models under a profile."""
        return [
            name
            for base, model in self.models.items()
            for name in (base, *(f"{base}@{profile}" for profile in model.profiles))
        ]

    def score(self, jobs: Sequence[Job]) -> list[Scored | NonFinite]:
        """Rewards and reasons of a batch, in order; an item whose numbers overflow gets its error."""
        return self.run(self.prepare(jobs))

    def prepare(self, jobs: Sequence[Job]) -> Prepared:
        """Pack a batch; needs no device."""
        return Prepared(tuple(jobs), pack([job.encoded.ids for job in jobs]))

    def run(self, prepared: Prepared) -> list[Scored | NonFinite]:
        """Scores of a prepared batch; an item that overflows is told from those it spoilt.

        Items share rows, and 0 x NaN is NaN: one overflowing item can spoil every item of its prefix.
        """
        results = self._pass(prepared)
        if len(results) == 1:
            return results
        return [
            self.score([job])[0] if isinstance(result, NonFinite) else result
            for job, result in zip(prepared.jobs, results, strict=True)
        ]

    @torch.inference_mode()
    def _pass(self, prepared: Prepared) -> list[Scored | NonFinite]:
        """One forward pass, then every model over the jobs that asked for it."""
        jobs, packed = prepared
        started = time.perf_counter()
        wanted = {name for job in jobs for name in job.ask.models}
        layers = {self.find(name)[0].card.layer for name in wanted}
        residuals = self.backbone.residuals(packed, layers)
        forwarded = time.perf_counter()
        scores: list[dict[str, Score]] = [{} for _ in jobs]
        for name in sorted(wanted):
            self._apply(name, residuals, prepared, scores)
        times = (forwarded - started, time.perf_counter() - forwarded)
        return [
            _checked(job, found, new, times)
            for job, found, new in zip(jobs, scores, packed.new_tokens, strict=True)
        ]

    def contrast(self, chosen: Score, rejected: Score, top_k: int) -> tuple[Contribution, ...]:
        """The features that make the margin between two responses; all of them together sum to it."""
        model, _ = self.find(chosen.model)
        factors = _factors(model, [Profile(steer=chosen.steer)]).to(self.backbone.device)
        p, q = (
            model.head.standardise(torch.from_numpy(score.projections).to(self.backbone.device)) * factors
            for score in (chosen, rejected)
        )
        shares = model.head.contributions(p, q)
        apart = Reading(
            torch.from_numpy(chosen.projections - rejected.projections)[None],
            torch.from_numpy(chosen.activations - rejected.activations)[None],
        )
        return _top(model, shares[0].cpu(), apart, 0, top_k)

    def verify(self) -> None:
        """Score every model's probes and refuse to serve if one is off."""
        tolerance = TOLERANCE[self.backbone.dtype]
        for name, model in self.models.items():
            encoded = self.encode([probe.exchange for probe in model.probes])
            results = self.score([Job(one, Ask((name,), Explain.NONE)) for one in encoded])
            for index, (probe, result) in enumerate(zip(model.probes, results, strict=True)):
                found = math.nan if isinstance(result, NonFinite) else result.scores[0].reward
                if not abs(found - probe.reward) <= tolerance:
                    raise BundleError(
                        f"{name}: probe {index} scores {found:.6f}, the bundle says {probe.reward:.6f} "
                        f"(tolerance {tolerance})"
                    )

    def _apply(
        self,
        name: str,
        residuals: dict[int, Tensor],
        prepared: Prepared,
        scores: list[dict[str, Score]],
    ) -> None:
        """Score the jobs that asked for this model under this profile."""
        model, profile = self.find(name)
        layer = residuals[model.card.layer]
        mine = [i for i, job in enumerate(prepared.jobs) if name in job.ask.models]
        wishes = [wish(prepared.jobs[i].ask, model, profile) for i in mine]
        reading = self._read(model, layer, prepared, mine)
        plain = model.head.standardise(reading.projections)
        factors = _factors(model, wishes).to(plain.device)
        x = plain * factors
        origin = torch.zeros_like(x[:1])
        baseline = float(model.head.members(origin).mean())
        shares = model.head.contributions(x, origin).cpu()
        encoded = [prepared.jobs[i].encoded for i in mine]
        numbers = _numbers(model, (plain, x), encoded, [one.length_control for one in wishes])
        reading = Reading(*(tensor.cpu() for tensor in reading))
        for at, i in enumerate(mine):
            ask, (reward, uncertainty, percentile, distance, correction) = prepared.jobs[i].ask, numbers[at]
            shown = ask.top_k if ask.explain is not Explain.NONE else 0
            scores[i][name] = Score(
                model=name,
                reward=reward,
                uncertainty=uncertainty,
                percentile=percentile,
                distance=distance,
                baseline=baseline,
                length_correction=correction,
                residual=reward - baseline - float(shares[at].sum()) - correction,
                steer=wishes[at].steer,
                features=_top(model, shares[at], reading, at, shown),
                clusters=_clusters(model, shares[at]) if ask.clusters else (),
                tokens=self._credits(model, layer, prepared, i, factors[at], baseline),
                projections=reading.projections[at].numpy(),
                activations=reading.activations[at].numpy(),
            )

    def _read(self, model: RewardModel, layer: Tensor, prepared: Prepared, mine: list[int]) -> Reading:
        """Pool the residuals this model's read-out wants of each of its jobs."""
        spans = [span(model.card.readout, prepared.jobs[i].encoded) for i in mine]
        rows = np.concatenate([prepared.packed.rows(i, *at) for i, at in zip(mine, spans, strict=True)])
        residuals = layer[torch.from_numpy(rows).to(layer.device)]
        return read(model.dictionary, residuals, [stop - start for start, stop in spans])

    def _credits(
        self, model: RewardModel, layer: Tensor, prepared: Prepared, i: int, factors: Tensor, baseline: float
    ) -> tuple[TokenCredit, ...] | None:
        """What each response token added to the running reward, or None where nobody asked."""
        job = prepared.jobs[i]
        if job.ask.explain is not Explain.TOKENS:
            return None
        start, stop = steps(model.card.readout, job.encoded)
        rows = torch.from_numpy(prepared.packed.rows(i, start, stop)).to(layer.device)
        path = running(model.card.readout, model.dictionary.project(layer[rows]))
        rewards = model.head.members(model.head.standardise(path) * factors).mean(1).tolist()
        earned = [after - before for before, after in zip([baseline, *rewards], rewards, strict=False)]
        texts = self.text.decode(job.encoded.ids[start:stop])
        return tuple(TokenCredit(text, credit) for text, credit in zip(texts, earned, strict=True))


def wish(ask: Ask, model: RewardModel, profile: Profile) -> Profile:
    """A profile with what a request asks on top of it."""
    mine = {key: factor for key, factor in ask.steer.items() if model.places(key)}
    steer = {**profile.steer, **mine}
    return replace(profile, steer=steer, length_control=profile.length_control or ask.length_control)


def _factors(model: RewardModel, wishes: list[Profile]) -> Tensor:
    """How much of each direction's deviation from the baseline is let through, (B, K)."""
    factors = torch.ones(len(wishes), len(model.features), dtype=torch.float64)
    for row, wished in enumerate(wishes):
        for key, factor in wished.steer.items():
            factors[row, model.places(key)] = factor
    return factors


def _numbers(
    model: RewardModel, readings: tuple[Tensor, Tensor], encoded: list[Encoded], control: list[bool]
) -> list[list[float]]:
    """Reward, uncertainty, percentile, distance and length correction of readings, plain and steered."""
    plain, steered = readings
    tokens = torch.tensor([one.stop - one.start for one in encoded], device=plain.device)
    spans = [span(model.card.readout, one) for one in encoded]
    read_tokens = torch.tensor([stop - start for start, stop in spans], device=plain.device)
    controlled = torch.tensor(control, device=plain.device)
    members = model.head.members(steered)
    correction = model.calibration.correction(tokens) * controlled
    rewards = members.mean(1) + correction
    columns = (
        rewards,
        members.std(1, correction=0),
        model.calibration.percentile(rewards, controlled),
        model.calibration.distance(plain, read_tokens),
        correction,
    )
    numbers: list[list[float]] = torch.stack(columns, dim=1).tolist()
    return numbers


def _clusters(model: RewardModel, shares: Tensor) -> tuple[Cluster, ...]:
    """What each cluster contributes, largest first; together they are the sum of all contributions."""
    named = {place for places in model.clusters.values() for place in places}
    rest = [place for place in range(len(shares)) if place not in named]
    found = [
        Cluster(name, len(places), float(shares[places].sum()))
        for name, places in (*model.clusters.items(), (None, rest))
        if places
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.contribution)))


def _checked(
    job: Job, found: dict[str, Score], new_tokens: int, times: tuple[float, float]
) -> Scored | NonFinite:
    scores = tuple(found[name] for name in job.ask.models)
    if all(math.isfinite(s.reward) and math.isfinite(s.uncertainty) for s in scores):
        return Scored(scores, new_tokens, *times)
    return NonFinite("the backbone produced NaN or infinity for this item", code="non_finite")


def _top(
    model: RewardModel, shares: Tensor, reading: Reading, row: int, count: int
) -> tuple[Contribution, ...]:
    """The `count` largest contributions by size."""
    best = shares.abs().topk(min(count, len(shares))).indices.tolist()
    return tuple(
        Contribution(
            model.features[k],
            float(shares[k]),
            float(reading.projections[row, k]),
            float(reading.activations[row, k]),
            bool(reading.activations[row, k] != 0),
        )
        for k in best
    )
