"""Admission control: refuses requests that cannot be scored in time, before any work is done for them.

Every request reserves its tokens before they are counted (their number is estimated from the text's length)
and releases them as its items are scored, so the amount of accepted work is bounded.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.errors import InvalidInput, Overloaded
from app.serve.batching.request_context import RequestContext
from app.serve.metrics import Metrics

# Share of a request's timeout that its estimated completion may use.
SAFETY_FACTOR = 0.8
# Time constant of the moving average of the speed.
SPEED_AVERAGE_S = 5.0
MAX_RETRY_AFTER_S = 60
# Used until texts have been tokenized.
INITIAL_TOKENS_PER_CHARACTER = 0.4
# Texts of this many characters together move the moving average half the way.
RATIO_AVERAGE_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """The load of the device when a request arrives, for estimating when the request completes.

    `processed_tokens` are those of the running batches that are computed by now. `tokens_ahead` counts the
    queued tokens that come before the request's last one; it is called only if the other numbers do not
    decide. A batch has up to `batch_tokens`, or `slot_tokens` if the executor's threads share them.
    """

    queued_tokens: int
    processed_tokens: float
    slot_tokens: int
    batch_tokens: int
    tokens_ahead: Callable[[], int]


class AdmissionControl:
    """The tokens that accepted requests reserve, and the speed at which they are scored."""

    def __init__(self, max_tokens: int, metrics: Metrics) -> None:
        self.reserved_tokens = 0
        self.tokens_per_second = 0.0
        self._max_tokens = max_tokens
        self._metrics = metrics
        self._tokens_per_character = INITIAL_TOKENS_PER_CHARACTER

    def estimate_tokens(self, characters: int) -> int:
        """Estimate how many tokens a text of this length has, from recent texts."""
        return max(1, round(characters * self._tokens_per_character))

    def update_token_ratio(self, characters: int, tokens: int) -> None:
        """Update the estimate with the actual number of tokens of a text of this length."""
        weight = characters / (characters + RATIO_AVERAGE_CHARACTERS)
        self._tokens_per_character += weight * (tokens / max(characters, 1) - self._tokens_per_character)

    def reserve(self, tokens: int, context: RequestContext, load: BatchLoad) -> "Reservation":
        """Return a reservation for a request, or refuse it.

        InvalidInput if the request is larger than the server ever accepts; Overloaded if the limit is reached
        now, or if the request would not complete within its timeout. An idle server accepts any timeout.
        """
        if tokens > self._max_tokens:
            raise InvalidInput(
                f"about {tokens} tokens in one request; this server holds {self._max_tokens}",
                "inputs",
                "request_too_large",
            )
        total = self.reserved_tokens + tokens
        if total > self._max_tokens:
            raise self._refuse(total - self._max_tokens)
        speed = self.tokens_per_second
        tokens_in_time = speed * context.timeout_s * SAFETY_FACTOR if speed else math.inf
        if self.reserved_tokens and total + load.batch_tokens > tokens_in_time:
            completion = self._tokens_until_completion(tokens, load)
            if completion > tokens_in_time:
                raise self._refuse(completion - tokens_in_time)
        return Reservation(self, tokens, context)

    def _tokens_until_completion(self, tokens: int, load: BatchLoad) -> float:
        """Estimate the tokens that are computed until a new request of `tokens` is complete.

        A batch completes as a whole. While the request's last batch runs, the other threads run batches too,
        so the full `batch_tokens` are added for it.
        """
        started = self.reserved_tokens - load.queued_tokens
        batches_before = math.ceil((load.tokens_ahead() + tokens) / load.slot_tokens) - 1
        return started - load.processed_tokens + batches_before * load.slot_tokens + load.batch_tokens

    def record_batch(self, tokens: int, seconds: float) -> None:
        """Update the speed with a batch of `tokens` that took `seconds`."""
        speed = tokens / max(seconds, 1e-6)
        weight = 1 - math.exp(-seconds / SPEED_AVERAGE_S) if self.tokens_per_second else 1.0
        self.tokens_per_second += weight * (speed - self.tokens_per_second)
        self._metrics.tokens_per_second.set(self.tokens_per_second)

    def add_tokens(self, tokens: int) -> None:
        """Reserve `tokens` more, or fewer if negative."""
        self.reserved_tokens += tokens
        self._metrics.backlog_tokens.set(self.reserved_tokens)

    def _refuse(self, excess_tokens: float) -> Overloaded:
        """Return the error that says when `excess_tokens` will have been computed."""
        speed = self.tokens_per_second
        retry_after_s = min(MAX_RETRY_AFTER_S, math.ceil(excess_tokens / speed)) if speed else 1
        return Overloaded(
            f"{self.reserved_tokens} tokens are waiting already; try again in {max(retry_after_s, 1)} s",
            code="queue_full",
            retry_after_s=max(retry_after_s, 1),
        )


class Reservation:
    """The tokens that one request reserves while it is open as a context manager."""

    def __init__(self, admission: AdmissionControl, tokens: int, context: RequestContext) -> None:
        self.context = context
        self.deadline = time.monotonic() + context.timeout_s
        self._admission = admission
        self._tokens = 0
        self._initial_tokens = tokens

    def __enter__(self) -> Self:
        self.resize(self._initial_tokens)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resize(0)

    def resize(self, tokens: int) -> None:
        """Set the reserved tokens, now that their number is known."""
        self._admission.add_tokens(tokens - self._tokens)
        self._tokens = tokens

    def release(self, tokens: int) -> None:
        """Release the tokens of an item that is done."""
        self.resize(max(0, self._tokens - tokens))
