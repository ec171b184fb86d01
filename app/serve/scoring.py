"""The way of a request behind every dialect: exchanges in, scores out.

Rooms 2 to 5: encode on threads, wait for a full pass, score. Timings are taken once, here.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidInput, SparseRMError
from app.model.engine import Engine
from app.serve.batcher import Batcher
from app.serve.drift import ANYONE, Drift
from app.serve.metrics import Metrics
from app.serve.requests import Place
from app.types import Ask, Encoded, Exchange, Job, Score, Scored


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every exchange as it was read, what it scored, and how long that took."""

    encoded: list[Encoded]
    scored: list[Scored]
    encode_s: float
    wait_s: float

    @property
    def device_s(self) -> float:
        """The longest pass any of the items rode on."""
        return max(one.forward_s + one.head_s for one in self.scored)


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

    async def score(
        self, placed: Sequence[tuple[Exchange, Place]], ask: Ask, *, truncate: bool, caller: str = ANYONE
    ) -> Outcome:
        """Score exchanges; an error names the place its exchange came from."""
        if len(placed) > self._max_items:
            raise InvalidInput(
                f"{len(placed)} responses in one request; the limit is {self._max_items}",
                placed[0][1].whole.partition("[")[0],
                "too_many_items",
            )
        self.engine.check(ask)
        started = time.perf_counter()
        try:
            exchanges = [exchange for exchange, _ in placed]
            encoded = await asyncio.to_thread(self.engine.encode, exchanges, truncate=truncate)
        except InvalidInput as error:
            place = placed[error.item or 0][1]
            raise InvalidInput(error.message, place.of(error.param), error.code, error.item) from error
        encode_s = time.perf_counter() - started
        answers = await self._batcher.submit([Job(one, ask) for one in encoded])
        for answer, (_, place) in zip(answers, placed, strict=True):
            if isinstance(answer.result, SparseRMError):
                raise type(answer.result)(answer.result.message, place.whole, answer.result.code)
        scored = [answer.result for answer in answers if isinstance(answer.result, Scored)]
        outcome = Outcome(encoded, scored, encode_s, max(answer.wait_s for answer in answers))
        self._measure(outcome, caller)
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
        for score in (score for scored in outcome.scored for score in scored.scores):
            self._measure_score(score)
            self.drift.observe(score, caller)

    def _measure_score(self, score: Score) -> None:
        self._metrics.scored.labels(score.model).inc()
        self._metrics.rewards.labels(score.model).observe(score.reward)
        for single in score.heads or (score,):
            self._metrics.active.labels(single.model).observe(int((single.activations > 0).sum()))
