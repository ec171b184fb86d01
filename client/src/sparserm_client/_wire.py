"""What goes over the wire and how patiently: asks and rewards, bodies and answers, waits between tries."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import httpx

HERE = "http://127.0.0.1:8000"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 15.0
LONGEST_TRY_S = 3600.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
MOST_AT_ONCE = 512
Turns = Sequence[Mapping[str, str]]


class AskFailed(Exception):
    """The server refused, or could not be reached in time; `status` is None for the latter."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, or messages, and one response to it."""

    prompt: str | Turns
    response: str

    @property
    def body(self) -> dict[str, Any]:
        """As the server reads it; where nothing was said, a blank line is scored."""
        key = "prompt" if isinstance(self.prompt, str) else "messages"
        said = self.prompt if isinstance(self.prompt, str) else [dict(turn) for turn in self.prompt]
        return {key: said, "response": self.response or "\n"}


@dataclass(frozen=True, slots=True)
class Share:
    """One feature's part of a reward."""

    id: int
    label: str | None
    contribution: float


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward, how sure it is, how usual the response, and what made it.

    Where the server could not score this response, though it did others, `error` says why and the numbers
    are NaN.
    """

    reward: float
    uncertainty: float
    percentile: float | None
    distance: float
    model: str
    features: tuple[Share, ...]
    truncated: bool
    error: str | None = None

    @property
    def known(self) -> float:
        """The reward; raises where there is none."""
        if self.error:
            raise AskFailed(self.error, 500)
        return self.reward


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, as whom, for which model, and how patiently.

    A try lasts `timeout_s` at most; while the server is away or busy, tries go on for `patience_s`.
    """

    url: str = HERE
    model: str | None = None
    key: str | None = None
    timeout_s: float = 120.0
    patience_s: float = 300.0

    @property
    def options(self) -> dict[str, Any]:
        """What an httpx client is made with."""
        timeout = f"{min(self.timeout_s, LONGEST_TRY_S):g}"
        headers = {"Content-Type": "application/json", "X-SparseRM-Timeout": timeout}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return {"base_url": self.url.rstrip("/"), "headers": headers, "timeout": self.timeout_s}


class Patience:
    """How long to wait before the next try: doubling, jittered, never sooner than the server asked."""

    def __init__(self, total_s: float) -> None:
        self._until = time.monotonic() + total_s
        self._next = FIRST_WAIT_S

    def wait(self, response: httpx.Response | None = None, error: Exception | None = None) -> float:
        """Seconds to wait; raises when patience is over."""
        asked = response.headers.get("retry-after", "0") if response is not None else "0"
        pause = max(self._next * random.uniform(0.5, 1.5), float(asked) if asked.isdigit() else 0.0)  # noqa: S311 # not a secret
        if time.monotonic() + pause > self._until:
            reason = f"{type(error).__name__}: {error}" if response is None else _said(response)
            raise AskFailed(
                f"no answer within the patience of this client; last: {reason}",
                None if response is None else response.status_code,
            ) from error
        self._next = min(2 * self._next, LONGEST_WAIT_S)
        return pause


def portions(asks: Sequence[Any]) -> list[Any]:
    """No more at once than a server likes."""
    return [asks[at : at + MOST_AT_ONCE] for at in range(0, len(asks), MOST_AT_ONCE)]


def body(asks: Sequence[Ask], model: str | None, top_k: int) -> dict[str, Any]:
    """The request for some rewards."""
    explain = "features" if top_k else "none"
    return {"model": model, "inputs": [ask.body for ask in asks], "top_k": top_k, "explain": explain}


def rendered(texts: Sequence[str], prompts: Sequence[str] | None, server: Server) -> dict[str, Any]:
    """The request for rewards of rendered texts."""
    return {"query": list(texts), "prompts": list(prompts) if prompts else None, "model": server.model}


def rewards(answer: dict[str, Any], count: int) -> list[Reward]:
    """The rewards in its answer."""
    rows = answer["data"]
    if len(rows) != count:
        raise AskFailed(f"{len(rows)} rewards for {count} responses")
    return [_reward(row) for row in rows]


def answered(response: httpx.Response) -> Any:
    """The body of an answer; a refusal is raised with its reason."""
    if response.is_success:
        return response.json()
    raise AskFailed(_said(response), response.status_code)


def _reward(row: dict[str, Any]) -> Reward:
    if "error" in row:
        return Reward(nan, nan, None, nan, row["model"], (), truncated=False, error=row["error"]["message"])
    return Reward(
        row["reward"], row["uncertainty"], row["percentile"], row["distance"], row["model"],
        tuple(Share(one["id"], one["label"], one["contribution"]) for one in row["features"]),
        row["truncated"],
    )  # fmt: skip


def _said(response: httpx.Response) -> str:
    """The reason in an error answer, whatever its shape."""
    try:
        body = response.json()
        reason = body["error"]["message"] if isinstance(body.get("error"), dict) else body
    except (ValueError, AttributeError, KeyError):
        reason = response.text[:200]
    return f"{response.status_code} {reason}"
