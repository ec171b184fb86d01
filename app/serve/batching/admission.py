"""How much work is promised and how fast it goes: whether a newcomer can be served in time.

A request holds room for its tokens from before they are counted (its length is guessed from its characters)
until each of them is answered, so what waits is bounded before any work is done for it.
"""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from app.errors import InvalidInput, Overloaded
from app.serve.metrics import Metrics
from app.types import RequestContext

HEADROOM = 0.8
MEMORY_S = 5.0
LONGEST_RETRY_S = 60
FIRST_GUESS = 0.4


class Backlog:
    """Tokens promised to callers, and the speed at which they are worked off."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.tokens = 0
        self.speed = 0.0
        self._limit = limit
        self._metrics = metrics
        self._density = FIRST_GUESS

    def guess(self, characters: int) -> int:
        """Tokens in so many characters, going by what came lately."""
        return max(1, round(characters * self._density))

    def learn(self, characters: int, tokens: int) -> None:
        """What so many characters turned out to be."""
        weight = characters / (characters + 20_000)
        self._density += weight * (tokens / max(characters, 1) - self._density)

    def room(self, tokens: int, terms: RequestContext, until: Callable[[], float], grain: int = 0) -> "Room":
        """Room for a request; refused where it could not be served in its caller's patience.

        `until` counts the tokens that are worked off by the time it is answered, its own among them. It is
        asked only where everything together, and what so coarse a grain adds, is too much.
        """
        if tokens > self._limit:
            raise InvalidInput(
                f"about {tokens} tokens in one request; this server holds {self._limit}",
                "inputs",
                "request_too_large",
            )
        in_time = self.speed * terms.timeout_s * HEADROOM if self.speed else math.inf
        if self.tokens + tokens > self._limit:
            raise self._refusal(self.tokens + tokens - self._limit)
        if self.tokens and self.tokens + tokens + grain > in_time and (last := until()) > in_time:
            raise self._refusal(last - in_time)
        return Room(self, tokens, terms)

    def passed(self, tokens: int, seconds: float) -> None:
        """A pass has answered so many tokens."""
        speed = tokens / max(seconds, 1e-6)
        weight = 1 - math.exp(-seconds / MEMORY_S) if self.speed else 1.0
        self.speed += weight * (speed - self.speed)
        self._metrics.speed.set(self.speed)

    def hold(self, tokens: int) -> None:
        """Promise so many tokens more, or fewer."""
        self.tokens += tokens
        self._metrics.backlog.set(self.tokens)

    def _refusal(self, tokens: float) -> Overloaded:
        wait = min(LONGEST_RETRY_S, math.ceil(tokens / self.speed)) if self.speed else 1
        return Overloaded(
            f"{self.tokens} tokens are waiting already; try again in {max(wait, 1)} s",
            code="queue_full",
            retry_after_s=max(wait, 1),
        )


class Room:
    """What one request holds of the backlog, and on which terms."""

    def __init__(self, backlog: Backlog, tokens: int, terms: RequestContext) -> None:
        self.terms = terms
        self.until = time.monotonic() + terms.timeout_s
        self._backlog = backlog
        self._held = 0
        self._wanted = tokens

    def __enter__(self) -> Self:
        self.correct(self._wanted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.correct(0)

    def correct(self, tokens: int) -> None:
        """It holds so many after all."""
        self._backlog.hold(tokens - self._held)
        self._held = tokens

    def give(self, tokens: int) -> None:
        """So many are answered."""
        self.correct(max(0, self._held - tokens))
