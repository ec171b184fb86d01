"""The scoring engine: one backbone and the reward models that use it; encode items, then score them.

The scores of a job do not depend on the other jobs of its batch: each item attends only to its own tokens,
and pooling is per item.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from app.backbone.attention import RowIndices
from app.backbone.backbone import Backbone, Residuals
from app.backbone.packing import PackedBatch, TokenIds, pack
from app.backbone.prefix_cache import PrefixCache, PrefixCacheLookup, PrefixQuery
from app.backbone.tokenization import ChatTokenizer
from app.errors import BundleError, InvalidInput, NonFiniteScore, NotFound
from app.reward.bundle import check_backbone_matches
from app.reward.composite import (
    Composite,
    combine_margin_coverage,
    combine_scores,
    compute_reward_scale,
    explain_composite_margin,
)
from app.reward.explanation import contributions
from app.reward.explanation.concepts import compute_coverage
from app.reward.pooled_turns import PackedJob, first_read_token
from app.reward.reward_model import RewardModel
from app.reward.scoring import score_with_model
from app.scores import Contribution, Score, ScoredItem
from app.types import EncodedItem, Explain, Item, Profile, ScoreJob, ScoreOptions

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Maximum difference between a probe's reward and the one in the bundle, by precision of the backbone."""


class PreparedBatch(NamedTuple):
    """Jobs, their packed tokens, and the cached prefixes of their prompts."""

    jobs: tuple[ScoreJob, ...]
    packed: PackedBatch
    prefix_lookup: PrefixCacheLookup


class Engine:
    """A loaded backbone and the reward models and composites that score with it."""

    def __init__(
        self,
        backbone: Backbone,
        text: ChatTokenizer,
        models: Mapping[str, RewardModel],
        composites: Mapping[str, Composite] | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        for model in models.values():
            check_backbone_matches(
                model, backbone=backbone.digest, template=text.template_sha256, width=backbone.hidden_size,
                layers=backbone.num_layers,
            )  # fmt: skip
        self.backbone = backbone
        self.text = text
        self.models = {name: model.to(backbone.device) for name, model in models.items()}
        self.composites = dict(composites or {})
        self.prefix_cache = prefix_cache or PrefixCache(0)
        self._reward_scales = {
            name: compute_reward_scale(model.calibration) for name, model in models.items()
        }
        self._check_composites()

    def encode(self, items: Sequence[Item], *, truncate: bool = True) -> list[EncodedItem]:
        """Encode items as token ids; raise InvalidInput for the first item that cannot be scored."""
        return self.text.encode(items, truncate=truncate)

    def validate_options(self, options: ScoreOptions) -> None:
        """Raise an error if a model does not exist or a steered key belongs to none of the models."""
        models = [self.resolve_model(part)[0] for name in options.models for part in self.resolve_parts(name)]
        for key in options.steer:
            if not any(model.find_directions(key) for model in models):
                raise InvalidInput(
                    f"{key!r} is neither a latent nor a concept of {', '.join(options.models)}",
                    f"steer.{key}",
                    "unknown_latent",
                )

    def resolve_parts(self, name: str) -> tuple[str, ...]:
        """Return the models of a composite, or the name itself if it is not a composite."""
        return tuple(self.composites[name].weights) if name in self.composites else (name,)

    def resolve_model(self, name: str) -> tuple[RewardModel, Profile]:
        """Return the model and the profile of a name such as safety or safety@strict."""
        base, separator, profile = name.partition("@")
        model = self.models.get(base)
        if model is None or (separator and profile not in model.profiles):
            names = ", ".join(self.model_names)
            raise NotFound(f"no model {name!r}; there are: {names}", "model", "unknown_model")
        return model, model.profiles[profile] if separator else Profile()

    @property
    def model_names(self) -> list[str]:
        """Names that requests may use: models, models with a profile, composites."""
        names = [
            name
            for base, model in self.models.items()
            for name in (base, *(f"{base}@{profile}" for profile in model.profiles))
        ]
        return [*names, *self.composites]

    def score(self, jobs: Sequence[ScoreJob]) -> list[ScoredItem | NonFiniteScore]:
        """Score one batch, in order. An item whose numbers overflow gets a NonFiniteScore."""
        return self.run(self.prepare(jobs))

    def prepare(self, jobs: Sequence[ScoreJob]) -> PreparedBatch:
        """Look up prompts in the prefix cache and pack the batch. This does not use the device."""
        prefix_lookup = self._look_up_prompts(jobs)
        packed = pack([job.encoded.ids for job in jobs], prefix_lookup.prefix_ids)
        return PreparedBatch(tuple(jobs), packed, prefix_lookup)

    def run(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        """Score a prepared batch. Items without finite scores are scored again, each alone.

        Items share rows, and 0 x NaN is NaN: one item that overflows can make all items with its prefix NaN.
        """
        if self._look_up_prompts(prepared.jobs).prefix_ids != prepared.prefix_lookup.prefix_ids:
            prepared = self.prepare(prepared.jobs)
        try:
            results = self._run_forward(prepared)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            torch.cuda.empty_cache()
            raise MemoryError("this batch does not fit on the device") from error
        if len(results) == 1:
            return results
        return [
            self.score([job])[0] if isinstance(result, NonFiniteScore) else result
            for job, result in zip(prepared.jobs, results, strict=True)
        ]

    @torch.inference_mode()
    def _run_forward(self, prepared: PreparedBatch) -> list[ScoredItem | NonFiniteScore]:
        """Run one forward pass, then score the jobs with every model that they request."""
        started_at = time.perf_counter()
        required = [self._required_models(job) for job in prepared.jobs]
        prefix_lookup = prepared.prefix_lookup
        prefix_lookup.rows_to_store = self._rows_to_store(prepared)
        rows = self._required_rows(prepared, required)
        residuals = self.backbone.residuals(prepared.packed, rows, prefix_lookup)
        self.prefix_cache.store(prefix_lookup)
        head_started_at = time.perf_counter()
        scores = self._score_models(prepared, required, residuals)
        times = (head_started_at - started_at, time.perf_counter() - head_started_at)
        return [
            _make_scored_item(
                job.encoded,
                [self._select_score(name, job_scores, job.options.top_k) for name in job.options.models],
                new_tokens,
                times,
            )
            for job, job_scores, new_tokens in zip(
                prepared.jobs, scores, prepared.packed.new_tokens, strict=True
            )
        ]

    def _score_models(
        self, prepared: PreparedBatch, required: Sequence[set[str]], residuals: Mapping[int, Residuals]
    ) -> list[dict[str, Score]]:
        """Return the scores of each job by model name."""
        scores: list[dict[str, Score]] = [{} for _ in prepared.jobs]
        for name in sorted(set().union(*required)):
            model, profile = self.resolve_model(name)
            indices = [index for index, names in enumerate(required) if name in names]
            model_scores = score_with_model(
                name,
                model,
                profile,
                residuals=residuals[model.card.layer],
                jobs=[PackedJob(prepared.jobs[index], index, prepared.packed) for index in indices],
                tokenizer=self.text,
            )
            for index, score in zip(indices, model_scores, strict=True):
                scores[index][name] = score
        return scores

    def _required_models(self, job: ScoreJob) -> set[str]:
        """Return the models that a job needs, without composites."""
        return {part for name in job.options.models for part in self.resolve_parts(name)}

    def _look_up_prompts(self, jobs: Sequence[ScoreJob]) -> PrefixCacheLookup:
        """Look up the prompts of the jobs in the prefix cache."""
        names = set().union(*(self._required_models(job) for job in jobs))
        depth = max(self.resolve_model(name)[0].card.layer for name in names)
        items = [PrefixQuery(job.encoded.ids, first_read_token(job)) for job in jobs]
        return self.prefix_cache.lookup(items, depth)

    def _rows_to_store(self, prepared: PreparedBatch) -> dict[TokenIds, RowIndices]:
        """Return the prompts that the prefix cache should store, each with its rows in the batch."""
        prompts = {job.encoded.prompt_ids: index for index, job in enumerate(prepared.jobs)}
        missing = self.prefix_cache.find_missing(prepared.prefix_lookup, list(prompts))
        return {ids: prepared.packed.rows(prompts[ids], 0, len(ids)) for ids in missing}

    def _required_rows(self, prepared: PreparedBatch, required: Sequence[set[str]]) -> dict[int, RowIndices]:
        """Return for each layer the rows whose residuals are pooled or credited."""
        rows: dict[int, list[RowIndices]] = {}
        for index, (job, names) in enumerate(zip(prepared.jobs, required, strict=True)):
            packed_job = PackedJob(job, index, prepared.packed)
            for card in (self.resolve_model(name)[0].card for name in names):
                rows.setdefault(card.layer, []).append(packed_job.required_rows(card.readout))
        return {layer: np.concatenate(layer_rows) for layer, layer_rows in rows.items()}

    def _select_score(self, name: str, scores: Mapping[str, Score], top_k: int) -> Score:
        """Return the score of a model, or combine the scores of a composite's models."""
        if name not in self.composites:
            return scores[name]
        parts = self.resolve_parts(name)
        scales = [self._reward_scales[part.partition("@")[0]] for part in parts]
        return combine_scores(name, self.composites[name], [scores[part] for part in parts], scales, top_k)

    def explain_margin(self, chosen: Score, rejected: Score, top_k: int) -> tuple[Contribution, ...]:
        """Return the features that explain the margin between two responses. All of them sum to it."""
        if chosen.part_scores:
            explain_part = partial(self.explain_margin, top_k=top_k)
            return explain_composite_margin(chosen, rejected, explain_part)[:top_k]
        return contributions.explain_margin(self.resolve_model(chosen.model)[0], chosen, rejected, top_k)

    def compute_margin_coverage(self, chosen: Score, rejected: Score) -> float | None:
        """Return the share of the summed sizes of the contributions to a margin that is in concepts."""
        if chosen.part_scores:
            return combine_margin_coverage(chosen, rejected, self.compute_margin_coverage)
        model = self.resolve_model(chosen.model)[0]
        return compute_coverage(model, chosen.contributions - rejected.contributions)

    def get_domain(self, name: str) -> str:
        """Return in words which texts a model was trained on; empty for composites."""
        return "" if name in self.composites else self.resolve_model(name)[0].card.domain

    def compute_preference_probability(self, name: str, margin: float) -> float | None:
        """Return the probability that people prefer the response whose reward is higher by `margin`.

        It is None for a composite, because no preference data calibrate it.
        """
        if name in self.composites:
            return None
        return self.resolve_model(name)[0].calibration.compute_preference_probability(margin)

    def _check_composites(self) -> None:
        for name, composite in self.composites.items():
            if name in self.models:
                raise BundleError(f"composites.toml: {name} is also the name of a model")
            for part in composite.weights:
                try:
                    self.resolve_model(part)
                except NotFound as error:
                    raise BundleError(f"composites.toml: {name}: {error}") from error

    def verify(self, *names: str) -> None:
        """Score the probes of the named models, or of all, and raise BundleError if a reward differs."""
        tolerance = PROBE_TOLERANCE[self.backbone.dtype]
        for name in names or self.models:
            for index, error in enumerate(self.measure_probe_errors(name)):
                if not error <= tolerance:
                    expected = self.models[name].probes[index].reward
                    raise BundleError(
                        f"{name}: probe {index} scores {error:.6f} off the {expected:.6f} of the bundle "
                        f"(tolerance {tolerance})"
                    )

    def measure_probe_errors(self, name: str) -> list[float]:
        """Return the error of each probe's reward against the bundle; NaN if the score is not finite."""
        probes = self.models[name].probes
        try:
            encoded = self.encode([probe.item for probe in probes])
        except InvalidInput as error:
            raise BundleError(f"{name}: a probe cannot be scored: {error}") from error
        results = self.score([ScoreJob(item, ScoreOptions((name,), Explain.NONE)) for item in encoded])
        return [
            math.nan if isinstance(result, NonFiniteScore) else abs(result.scores[0].reward - probe.reward)
            for probe, result in zip(probes, results, strict=True)
        ]


def _make_scored_item(
    encoded: EncodedItem, scores: list[Score], new_tokens: int, times: tuple[float, float]
) -> ScoredItem | NonFiniteScore:
    if all(map(_is_finite, scores)):
        return ScoredItem(encoded, tuple(scores), new_tokens, *times)
    return NonFiniteScore("the backbone produced NaN or infinity for this item", code="non_finite")


def _is_finite(score: Score) -> bool:
    rewards = (score.reward, score.uncertainty, *(turn.reward for turn in score.turns))
    return all(map(math.isfinite, rewards))
