"""How to reach a server, and how long to wait between attempts."""

import random
import time
from dataclasses import dataclass
from typing import Any

import httpx

from sparserm_client._types import RequestFailed

DEFAULT_URL = "http://127.0.0.1:8000"
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 15.0
# The server accepts at most this much in X-SparseRM-Timeout.
MAX_TIMEOUT_HEADER_S = 3600.0
# Statuses of a server that is overloaded, restarting or failing; all others are final.
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The server's address, the default model, the API key and the time limits of a client.

    One attempt takes at most `timeout_s`; the server gets this limit in the header X-SparseRM-Timeout. While
    the server is overloaded or does not answer, attempts go on for `retry_for_s`.
    """

    url: str = DEFAULT_URL
    model: str | None = None
    key: str | None = None
    timeout_s: float = 120.0
    retry_for_s: float = 300.0

    def http_options(self) -> dict[str, Any]:
        """Return the arguments of an httpx client for this server."""
        timeout = f"{min(self.timeout_s, MAX_TIMEOUT_HEADER_S):g}"
        headers = {"Content-Type": "application/json", "X-SparseRM-Timeout": timeout}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return {"base_url": self.url.rstrip("/"), "headers": headers, "timeout": self.timeout_s}


class RetryPolicy:
    """The delays between the attempts at one request: doubling, with jitter, at least `Retry-After`."""

    def __init__(self, retry_for_s: float) -> None:
        self._retry_for_s = retry_for_s
        self._deadline = time.monotonic() + retry_for_s
        self._delay_s = FIRST_DELAY_S

    def next_delay_s(self, response: httpx.Response | None = None, error: Exception | None = None) -> float:
        """Return the seconds to wait after this response or error.

        Raises RequestFailed if the next attempt would start after the deadline.
        """
        retry_after = response.headers.get("retry-after", "") if response is not None else ""
        jittered = self._delay_s * random.uniform(0.5, 1.5)  # noqa: S311 # not a secret
        delay_s = max(jittered, float(retry_after) if retry_after.isdigit() else 0.0)
        if time.monotonic() + delay_s > self._deadline:
            raise self._failure(response, error) from error
        self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        return delay_s

    def _failure(self, response: httpx.Response | None, error: Exception | None) -> RequestFailed:
        last = f"{type(error).__name__}: {error}" if response is None else describe_error(response)
        message = (
            f"no successful response within retry_for_s={self._retry_for_s:g} seconds; last attempt: {last}"
        )
        return RequestFailed(message, None if response is None else response.status_code)


def describe_error(response: httpx.Response) -> str:
    """Return the status and the message of an error response; falls back to its text if it has no message."""
    try:
        body = response.json()
        reason = body["error"]["message"] if isinstance(body.get("error"), dict) else body
    except (ValueError, AttributeError, KeyError):
        reason = response.text[:200]
    return f"{response.status_code} {reason}"
