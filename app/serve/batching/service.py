"""The scoring of a request, shared by all APIs: reserve tokens, tokenize, wait in the queue, score.

Timings are measured here once. A request keeps the engine it starts with, so no response mixes two versions
of a model.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.errors import InvalidInput, Overloaded, ServiceUnavailable
from app.reward.engine import Engine
from app.scores import Score, ScoredItem
from app.serve.api.request_schemas import InputLocation
from app.serve.batching.batcher import Batcher
from app.serve.batching.fair_queue import FailedItem
from app.serve.batching.request_context import RequestContext
from app.serve.drift import DriftMonitor
from app.serve.metrics import Metrics
from app.types import EncodedItem, Item, ScoreJob, ScoreOptions


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """The results of one request; `encode_s` is the time it took to tokenize all of its items."""

    engine: Engine
    items: list[ScoredItem | FailedItem]
    encode_s: float

    @property
    def scored_items(self) -> list[ScoredItem]:
        """The items that have scores."""
        return [item for item in self.items if isinstance(item, ScoredItem)]

    def raise_for_errors(self) -> list[ScoredItem]:
        """Return every item's scores, or raise the first error: for formats without errors per item."""
        for item in self.items:
            if isinstance(item, FailedItem):
                raise item.error
        return self.scored_items

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, shared prefixes counted once per item."""
        return sum(item.encoded.response_start for item in self.items)

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses, without the closing tokens."""
        return sum(item.encoded.response_end - item.encoded.response_start for item in self.items)

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the backbone, after sharing prefixes."""
        return sum(item.computed_tokens for item in self.scored_items)

    @property
    def wait_s(self) -> float:
        """The longest time that an item waited for the device."""
        return max(item.wait_s for item in self.items)

    @property
    def device_s(self) -> float:
        """The time of the slowest forward pass and heads that an item was part of."""
        return max((item.forward_s + item.head_s for item in self.scored_items), default=0.0)


class ScoringService:
    """Scores requests with the current engine, through the batcher."""

    def __init__(self, engine: Engine, batcher: Batcher, metrics: Metrics, *, max_items: int) -> None:
        self.engine = engine
        self.drift = DriftMonitor(engine.models, metrics)
        self._batcher = batcher
        self._metrics = metrics
        self._max_items = max_items

    @property
    def ready(self) -> bool:
        """Whether new requests are accepted."""
        return self._batcher.accepting

    def switch_engine(self, engine: Engine) -> None:
        """Score later requests with this engine."""
        self.engine = engine
        self.drift.watch(engine.models)

    async def score(
        self,
        located_items: Sequence[tuple[Item, InputLocation]],
        options: ScoreOptions,
        context: RequestContext,
        *,
        truncate: bool,
    ) -> ScoringResult:
        """Score items; errors name the request's field that the item came from."""
        engine = self.engine
        engine.validate_options(options)
        self._check_item_count(located_items)
        started_at = time.perf_counter()
        characters = [_count_characters(item) for item, _ in located_items]
        with self._batcher.reserve(self._estimate_tokens(characters, engine), context) as reservation:
            encoded_items = await _encode(engine, located_items, truncate=truncate)
            tokens = sum(len(encoded.ids) for encoded in encoded_items)
            if not any(encoded.truncated for encoded in encoded_items):
                self._batcher.admission.update_token_ratio(sum(characters), tokens)
            reservation.resize(tokens)
            encode_s = time.perf_counter() - started_at
            jobs = [ScoreJob(encoded, options) for encoded in encoded_items]
            items = await self._batcher.submit(jobs, engine, reservation)
        locations = [location for _, location in located_items]
        located = [_locate_error(*pair) for pair in zip(items, locations, strict=True)]
        result = ScoringResult(engine, located, encode_s)
        self._record_metrics(result, context.caller)
        return result

    def _check_item_count(self, located_items: Sequence[tuple[Item, InputLocation]]) -> None:
        if len(located_items) > self._max_items:
            raise InvalidInput(
                f"{len(located_items)} responses in one request; the limit is {self._max_items}",
                located_items[0][1].item.partition("[")[0],
                "too_many_items",
            )

    def _estimate_tokens(self, characters: Sequence[int], engine: Engine) -> int:
        estimate = self._batcher.admission.estimate_tokens
        return sum(min(estimate(length), engine.text.max_tokens) for length in characters)

    def _record_metrics(self, result: ScoringResult, caller: str) -> None:
        metrics = self._metrics
        metrics.stage_seconds.labels("encode").observe(result.encode_s)
        metrics.stage_seconds.labels("wait").observe(result.wait_s)
        metrics.tokens.labels("prompt").inc(result.prompt_tokens)
        metrics.tokens.labels("response").inc(result.response_tokens)
        metrics.truncated.inc(sum(item.encoded.truncated for item in result.items))
        for item in result.items:
            metrics.input_tokens.observe(len(item.encoded.ids))
            if isinstance(item, FailedItem):
                metrics.items_failed.labels(item.error.code).inc()
                continue
            for score in item.scores:
                self._record_score_metrics(score)
                if result.engine is self.engine:
                    self.drift.observe(score, caller)

    def _record_score_metrics(self, score: Score) -> None:
        self._metrics.scored.labels(score.model).inc()
        self._metrics.reward.labels(score.model).observe(score.reward)
        for head_score in score.part_scores or (score,):
            active = int((head_score.activations > 0).sum())
            self._metrics.active_features.labels(head_score.model).observe(active)


async def _encode(
    engine: Engine, located_items: Sequence[tuple[Item, InputLocation]], *, truncate: bool
) -> list[EncodedItem]:
    """Tokenize the items on a thread; an error names the request's field."""
    try:
        return await asyncio.to_thread(engine.encode, [item for item, _ in located_items], truncate=truncate)
    except InvalidInput as error:
        location = located_items[error.item or 0][1]
        raise InvalidInput(error.message, location.field_for(error.param), error.code, error.item) from error


def _locate_error(item: ScoredItem | FailedItem, location: InputLocation) -> ScoredItem | FailedItem:
    """Name the request's field in an item's error; raise an error that concerns the whole request."""
    if isinstance(item, ScoredItem):
        return item
    error = type(item.error)(item.error.message, location.item, item.error.code)
    if isinstance(error, Overloaded | ServiceUnavailable):
        raise error
    return replace(item, error=error)


def _count_characters(item: Item) -> int:
    return len(item.response) + sum(len(message.content) for message in item.messages)
