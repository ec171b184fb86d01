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

from app.backbone.attention import Rows
from app.backbone.backbone import Backbone
from app.backbone.packing import Ids, Packed, pack
from app.backbone.prefix_cache import Recall, Session
from app.backbone.tokenization import Text
from app.errors import BundleError, InvalidInput, NonFinite, NotFound
from app.reward import explanations
from app.reward.bundle import RewardModel, check_home
from app.reward.composite import Composite, blend, levels
from app.reward.directions import Reading
from app.reward.scoring import Case, judge
from app.types import (
    Contribution,
    EncodedItem,
    Explain,
    Item,
    Profile,
    Score,
    ScoredItem,
    ScoreJob,
    ScoreOptions,
)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class Prepared(NamedTuple):
    """Jobs, the packed row that answers them, and what is remembered of their prompts."""

    jobs: tuple[ScoreJob, ...]
    packed: Packed
    session: Session


class Engine:
    """A resident backbone and the reward models that read it."""

    def __init__(
        self,
        backbone: Backbone,
        text: Text,
        models: Mapping[str, RewardModel],
        composites: Mapping[str, Composite] | None = None,
        recall: Recall | None = None,
    ) -> None:
        for model in models.values():
            check_home(
                model, backbone=backbone.digest, template=text.digest, width=backbone.width,
                layers=backbone.layers,
            )  # fmt: skip
        self.backbone = backbone
        self.text = text
        self.models = {name: model.to(backbone.device) for name, model in models.items()}
        self.composites = dict(composites or {})
        self.recall = recall or Recall(0)
        self._levels = {name: levels(model.calibration) for name, model in models.items()}
        self._check_composites()

    def encode(self, exchanges: Sequence[Item], *, truncate: bool = True) -> list[EncodedItem]:
        """Exchanges as token ids; InvalidInput names the first that cannot be scored."""
        return self.text.encode(exchanges, truncate=truncate)

    def check(self, ask: ScoreOptions) -> None:
        """Refuse what no batch could answer: unknown models and latents."""
        asked = [self.find(head)[0] for name in ask.models for head in self.heads(name)]
        for key in ask.steer:
            if not any(model.places(key) for model in asked):
                raise InvalidInput(
                    f"{key!r} is neither a latent nor a cluster of {', '.join(ask.models)}",
                    f"steer.{key}",
                    "unknown_latent",
                )

    def heads(self, name: str) -> tuple[str, ...]:
        """What a name is made of: a composite's heads, or itself."""
        return tuple(self.composites[name].weights) if name in self.composites else (name,)

    def find(self, name: str) -> tuple[RewardModel, Profile]:
        """A model by name, and the profile named after an @."""
        base, at, profile = name.partition("@")
        model = self.models.get(base)
        if model is None or (at and profile not in model.profiles):
            raise NotFound(f"no model {name!r}; there are: {', '.join(self.names)}", "model", "unknown_model")
        return model, model.profiles[profile] if at else Profile()

    @property
    def names(self) -> list[str]:
        """Everything that can be asked for: models, models under a profile, composites."""
        single = [
            name
            for base, model in self.models.items()
            for name in (base, *(f"{base}@{profile}" for profile in model.profiles))
        ]
        return [*single, *self.composites]

    def score(self, jobs: Sequence[ScoreJob]) -> list[ScoredItem | NonFinite]:
        """Rewards and reasons of a batch, in order; an item whose numbers overflow gets its error."""
        return self.run(self.prepare(jobs))

    def prepare(self, jobs: Sequence[ScoreJob]) -> Prepared:
        """Pack a batch; needs no device."""
        session = self._session(jobs)
        packed = pack([job.encoded.ids for job in jobs], session.spelled)
        return Prepared(tuple(jobs), packed, session)

    def run(self, prepared: Prepared) -> list[ScoredItem | NonFinite]:
        """Scores of a prepared batch; an item that overflows is told from those it spoilt.

        Items share rows, and 0 x NaN is NaN: one overflowing item can spoil every item of its prefix.
        """
        if self._session(prepared.jobs).spelled != prepared.session.spelled:
            prepared = self.prepare(prepared.jobs)
        try:
            results = self._pass(prepared)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            torch.cuda.empty_cache()
            raise MemoryError("this batch does not fit on the device") from error
        if len(results) == 1:
            return results
        return [
            self.score([job])[0] if isinstance(result, NonFinite) else result
            for job, result in zip(prepared.jobs, results, strict=True)
        ]

    @torch.inference_mode()
    def _pass(self, prepared: Prepared) -> list[ScoredItem | NonFinite]:
        """One forward pass, then every model over the jobs that asked for it."""
        jobs, packed, session = prepared
        started = time.perf_counter()
        needed = [self._needed(job) for job in jobs]
        wanted = set().union(*needed)
        session.keep = self._unknown(prepared)
        residuals = self.backbone.residuals(packed, self._reads(prepared, needed), session)
        self.recall.keep(session)
        forwarded = time.perf_counter()
        scores: list[dict[str, Score]] = [{} for _ in jobs]
        for name in sorted(wanted):
            model, profile = self.find(name)
            mine = [i for i, heads in enumerate(needed) if name in heads]
            cases = [Case(jobs[i], i, packed) for i in mine]
            layer = residuals[model.card.layer]
            found = judge(name, model, profile, layer=layer, cases=cases, decode=self.text.decode)
            for i, score in zip(mine, found, strict=True):
                scores[i][name] = score
        times = (forwarded - started, time.perf_counter() - forwarded)
        return [
            _checked([self._score(name, found, job.options.top_k) for name in job.options.models], new, times)
            for job, found, new in zip(jobs, scores, packed.new_tokens, strict=True)
        ]

    def _needed(self, job: ScoreJob) -> set[str]:
        """The heads a job asks for."""
        return {head for name in job.options.models for head in self.heads(name)}

    def _session(self, jobs: Sequence[ScoreJob]) -> Session:
        """What is remembered of the prompts of some jobs."""
        depth = max(self.find(head)[0].card.layer for job in jobs for head in self._needed(job))
        return self.recall.session([job.encoded.prompt for job in jobs], depth)

    def _unknown(self, prepared: Prepared) -> dict[Ids, Rows]:
        """Prompts to remember, each with the rows that spell it."""
        prompts = {job.encoded.prompt: i for i, job in enumerate(prepared.jobs)}
        unknown = self.recall.unknown(prepared.session, list(prompts))
        return {ids: prepared.packed.rows(prompts[ids], 0, len(ids)) for ids in unknown}

    def _reads(self, prepared: Prepared, needed: Sequence[set[str]]) -> dict[int, Rows]:
        """Of each layer the rows that are pooled or credited."""
        rows: dict[int, list[Rows]] = {}
        for i, (job, heads) in enumerate(zip(prepared.jobs, needed, strict=True)):
            case = Case(job, i, prepared.packed)
            for card in (self.find(name)[0].card for name in heads):
                rows.setdefault(card.layer, []).append(case.needed(card.readout))
        return {layer: np.concatenate(found) for layer, found in rows.items()}

    def _score(self, name: str, found: Mapping[str, Score], top_k: int) -> Score:
        if name not in self.composites:
            return found[name]
        heads = self.heads(name)
        usual = [self._levels[head.partition("@")[0]] for head in heads]
        return blend(name, self.composites[name], [found[head] for head in heads], usual, top_k)

    def contrast(self, chosen: Score, rejected: Score, top_k: int) -> tuple[Contribution, ...]:
        """The features that make the margin between two responses; all of them together sum to it."""
        if chosen.heads:
            return self._contrast_of_parts(chosen, rejected, top_k)
        model, _ = self.find(chosen.model)
        factors = explanations.factors(model, [Profile(steer=chosen.steer)]).to(self.backbone.device)
        p, q = (
            model.head.standardise(torch.from_numpy(score.projections).to(self.backbone.device)) * factors
            for score in (chosen, rejected)
        )
        shares = model.head.contributions(p, q)
        apart = Reading(
            torch.from_numpy(chosen.projections - rejected.projections)[None],
            torch.from_numpy(chosen.activations - rejected.activations)[None],
        )
        return explanations.top(model, shares[0].cpu(), apart, 0, top_k)

    def probability(self, name: str, margin: float) -> float | None:
        """How likely people prefer the response ahead by a margin; a composite has no data to say so."""
        return None if name in self.composites else self.find(name)[0].calibration.probability(margin)

    def _contrast_of_parts(self, chosen: Score, rejected: Score, top_k: int) -> tuple[Contribution, ...]:
        if [part.scale for part in chosen.parts] != [part.scale for part in rejected.parts]:
            raise InvalidInput(
                f"{chosen.model} judged the two responses by different heads, so no features explain the "
                "difference; compare under its heads",
                "model",
                "no_common_head",
            )
        shares = [
            replace(one, contribution=part.scale * one.contribution)
            for part, a, b in zip(chosen.parts, chosen.heads, rejected.heads, strict=True)
            for one in self.contrast(a, b, top_k)
        ]
        return tuple(sorted(shares, key=lambda one: -abs(one.contribution))[:top_k])

    def _check_composites(self) -> None:
        for name, composite in self.composites.items():
            if name in self.models:
                raise BundleError(f"composites.toml: {name} is also the name of a model")
            for head in composite.weights:
                try:
                    self.find(head)
                except NotFound as error:
                    raise BundleError(f"composites.toml: {name}: {error}") from error

    def verify(self, *names: str) -> None:
        """Score the probes of some models, or of all, and refuse to serve if one is off."""
        tolerance = TOLERANCE[self.backbone.dtype]
        for name in names or self.models:
            for index, off in enumerate(self.probed(name)):
                if not off <= tolerance:
                    told = self.models[name].probes[index].reward
                    raise BundleError(
                        f"{name}: probe {index} scores {off:.6f} off the {told:.6f} that the bundle says "
                        f"(tolerance {tolerance})"
                    )

    def probed(self, name: str) -> list[float]:
        """How far a model's probes score here from what its bundle says; NaN where they cannot."""
        probes = self.models[name].probes
        try:
            encoded = self.encode([probe.exchange for probe in probes])
        except InvalidInput as error:
            raise BundleError(f"{name}: a probe cannot be scored: {error}") from error
        results = self.score([ScoreJob(one, ScoreOptions((name,), Explain.NONE)) for one in encoded])
        return [
            math.nan if isinstance(result, NonFinite) else abs(result.scores[0].reward - probe.reward)
            for probe, result in zip(probes, results, strict=True)
        ]


def _checked(scores: list[Score], new_tokens: int, times: tuple[float, float]) -> ScoredItem | NonFinite:
    if all(math.isfinite(s.reward) and math.isfinite(s.uncertainty) for s in scores):
        return ScoredItem(tuple(scores), new_tokens, *times)
    return NonFinite("the backbone produced NaN or infinity for this item", code="non_finite")
