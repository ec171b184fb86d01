"""The way of a request behind every dialect: exchanges in, scores out.

Rooms 2 to 5: room in the backlog, encode on threads, wait for a full pass, score. Timings are taken once,
here. A request keeps the engine it began with, so no answer mixes two versions of a model.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import Closing, InvalidInput, Overloaded, SparseRMError
from app.reward.engine import Engine
from app.serve.api.request_schemas import Place
from app.serve.batching.batcher import Batcher
from app.serve.batching.fair_queue import Answer
from app.serve.drift import Drift
from app.serve.metrics import Metrics
from app.types import EncodedItem, Item, RequestContext, Score, ScoredItem, ScoreJob, ScoreOptions


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every exchange as it was read, what it scored or why it did not, and how long that took."""

    engine: Engine
    encoded: list[EncodedItem]
    results: list[ScoredItem | SparseRMError]
    encode_s: float
    wait_s: float

    @property
    def scored(self) -> list[ScoredItem]:
        """Every item's scores, for answers that can carry nothing else: an item's failure is raised."""
        for result in self.results:
            if isinstance(result, SparseRMError):
                raise result
        return [result for result in self.results if isinstance(result, ScoredItem)]

    @property
    def computed_tokens(self) -> int:
        """Tokens that really went through the backbone."""
        return sum(one.computed_tokens for one in self.results if isinstance(one, ScoredItem))

    @property
    def device_s(self) -> float:
        """The longest pass any of the items rode on."""
        scored = [one for one in self.results if isinstance(one, ScoredItem)]
        return max((one.forward_s + one.head_s for one in scored), default=0.0)


class Scorer:
    """Engine and batcher as one verb."""

    def __init__(self, engine: Engine, batcher: Batcher, metrics: Metrics, *, max_items: int) -> None:
        self.engine = engine
        self.drift = Drift(engine.models, metrics)
        self._batcher = batcher
        self._metrics = metrics
        self._max_items = max_items

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served."""
        return self._batcher.accepting

    def turn_to(self, engine: Engine) -> None:
        """From the next request on, score with this engine."""
        self.engine = engine
        self.drift.watch(engine.models)

    async def score(
        self,
        placed: Sequence[tuple[Item, Place]],
        ask: ScoreOptions,
        terms: RequestContext,
        *,
        truncate: bool,
    ) -> Outcome:
        """Score exchanges; an error names the place its exchange came from."""
        engine = self.engine
        engine.check(ask)
        if len(placed) > self._max_items:
            raise InvalidInput(
                f"{len(placed)} responses in one request; the limit is {self._max_items}",
                placed[0][1].whole.partition("[")[0],
                "too_many_items",
            )
        started = time.perf_counter()
        characters = [_characters(exchange) for exchange, _ in placed]
        guess = sum(min(self._batcher.backlog.guess(n), engine.text.max_tokens) for n in characters)
        with self._batcher.room(guess, terms) as room:
            encoded = await _encoded(engine, placed, truncate=truncate)
            tokens = sum(len(one.ids) for one in encoded)
            if not any(one.truncated for one in encoded):
                self._batcher.backlog.learn(sum(characters), tokens)
            room.correct(tokens)
            encode_s = time.perf_counter() - started
            answers = await self._batcher.submit([ScoreJob(one, ask) for one in encoded], engine, room)
        results = [_placed(answer, place) for answer, (_, place) in zip(answers, placed, strict=True)]
        outcome = Outcome(engine, encoded, results, encode_s, max(answer.wait_s for answer in answers))
        self._measure(outcome, terms.caller)
        return outcome

    def _measure(self, outcome: Outcome, caller: str) -> None:
        metrics = self._metrics
        metrics.stage_seconds.labels("encode").observe(outcome.encode_s)
        metrics.stage_seconds.labels("wait").observe(outcome.wait_s)
        for encoded in outcome.encoded:
            metrics.input_tokens.observe(len(encoded.ids))
        metrics.tokens.labels("prompt").inc(sum(one.start for one in outcome.encoded))
        metrics.tokens.labels("response").inc(sum(one.stop - one.start for one in outcome.encoded))
        metrics.truncated.inc(sum(one.truncated for one in outcome.encoded))
        for result in outcome.results:
            if isinstance(result, SparseRMError):
                metrics.failed.labels(result.code).inc()
                continue
            for score in result.scores:
                self._measure_score(score)
                if outcome.engine is self.engine:
                    self.drift.observe(score, caller)

    def _measure_score(self, score: Score) -> None:
        self._metrics.scored.labels(score.model).inc()
        self._metrics.rewards.labels(score.model).observe(score.reward)
        for single in score.heads or (score,):
            self._metrics.active.labels(single.model).observe(int((single.activations > 0).sum()))


async def _encoded(
    engine: Engine, placed: Sequence[tuple[Item, Place]], *, truncate: bool
) -> list[EncodedItem]:
    try:
        return await asyncio.to_thread(engine.encode, [exchange for exchange, _ in placed], truncate=truncate)
    except InvalidInput as error:
        place = placed[error.item or 0][1]
        raise InvalidInput(error.message, place.of(error.param), error.code, error.item) from error


def _placed(answer: Answer, place: Place) -> ScoredItem | SparseRMError:
    """A result, or an item's failure with its place; what ends the whole request is raised."""
    if isinstance(answer.result, ScoredItem):
        return answer.result
    failure = type(answer.result)(answer.result.message, place.whole, answer.result.code)
    if isinstance(failure, Overloaded | Closing):
        raise failure
    return failure


def _characters(exchange: Item) -> int:
    return len(exchange.response) + sum(len(message.content) for message in exchange.messages)
