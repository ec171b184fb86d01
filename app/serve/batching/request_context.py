"""Who sent a request, and how its jobs are to be queued."""

from dataclasses import dataclass

ANONYMOUS_CALLER = "default"
"""Caller name of requests without the header X-SparseRM-Caller."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who sent a request, whether it has priority, and how long the caller waits."""

    caller: str = ANONYMOUS_CALLER
    host: str = ""
    urgent: bool = False
    timeout_s: float = 110.0

    @property
    def fairness_key(self) -> str:
        """Key of the fair queue: the caller's name, or the client address if it is anonymous."""
        return self.host if self.caller == ANONYMOUS_CALLER else self.caller
