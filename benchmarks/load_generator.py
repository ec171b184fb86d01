"""Drives a server over HTTP and notes what became of every request.

Closed loop: each voice asks again when it has heard, which finds the peak. Open loop: requests go out at
random moments whether or not earlier ones were answered; latency counts from when one was meant to go out.
"""

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from random import Random

import httpx

from benchmarks.peers.peer import Peer
from benchmarks.workloads import Burst, Query, Workload

REFUSALS = (429, 503)
KEPT_S = 2.0  # servers let go of idle connections after five seconds; a request must not meet that moment


class Outcome(StrEnum):
    """What became of a request."""

    GOOD = "good"
    REFUSED = "refused"
    LOST = "lost"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of one request, how long after it was meant to go out, and the lengths of its pairs."""

    outcome: Outcome
    latency_s: float
    item_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Everything that was heard, and the time from the first question to the last answer."""

    records: tuple[RequestRecord, ...]
    seconds: float


SendQuery = Callable[[Query], Awaitable[Outcome]]


class LoadClient:
    """Asks the servers of one peer, every one of them the same."""

    def __init__(self, peer: Peer, urls: Sequence[str], http: httpx.AsyncClient) -> None:
        self._peer = peer
        self._urls = urls
        self._http = http

    async def send(self, query: Query) -> Outcome:
        """What becomes of a request."""
        try:
            await self.scores(query)
        except httpx.HTTPStatusError as error:
            return Outcome.REFUSED if error.response.status_code in REFUSALS else Outcome.WRONG
        except httpx.TransportError:
            return Outcome.LOST
        except (ValueError, LookupError, TypeError):
            return Outcome.WRONG
        return Outcome.GOOD

    async def scores(self, query: Query) -> list[float]:
        """A score for every pair, as the first server says it; the others must have said something too."""
        said = await asyncio.gather(*(self._scores(url, query) for url in self._urls))
        return said[0]

    async def _scores(self, url: str, query: Query) -> list[float]:
        requests = self._peer.ask(query)
        answers = await asyncio.gather(*(self._http.post(url + one.path, json=one.body) for one in requests))
        scores = [score for one in answers for score in self._peer.read(one.raise_for_status().json())]
        if len(scores) != len(query) or not all(map(math.isfinite, scores)):
            raise ValueError("not a finite score for every pair")
        return scores


@asynccontextmanager
async def open_client(
    peer: Peer, urls: Sequence[str], *, timeout_s: float, own_connections: bool = False
) -> AsyncIterator[LoadClient]:
    """A caller that waits so long, over connections that are kept or made for each request."""
    headers = {"Connection": "close"} if own_connections else {}
    if peer.patience:
        headers[peer.patience] = str(timeout_s)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_S)
    async with httpx.AsyncClient(
        headers=headers, timeout=timeout_s, limits=limits, verify=ssl.create_default_context()
    ) as http:
        yield LoadClient(peer, urls, http)


async def run_closed_loop(
    ask: SendQuery, turns: Iterator[Burst], workload: Workload, *, seconds: float, rng: Random
) -> LoadRun:
    """Every voice sends a turn, waits for all of it, and begins no other after so many seconds."""
    heard: list[RequestRecord] = []
    first = list(islice(turns, workload.clients))
    started = time.perf_counter()

    async def one(query: Query) -> None:
        await asyncio.sleep(rng.uniform(0, workload.spread_s))
        heard.append(await _heard(ask, query, time.perf_counter()))

    async def voice(turn: Burst) -> None:
        await asyncio.gather(*(one(query) for query in turn))
        while time.perf_counter() < started + seconds:
            await asyncio.gather(*(one(query) for query in next(turns)))

    await asyncio.gather(*(voice(turn) for turn in first))
    return LoadRun(tuple(heard), time.perf_counter() - started)


async def run_open_loop(
    ask: SendQuery, turns: Iterator[Burst], *, rate: float, seconds: float, rng: Random
) -> LoadRun:
    """Requests at random moments, `rate` of them a second on average; seconds are those of asking."""
    plan = [(moment, query) for moment in poisson_arrivals(rng, rate, seconds) for query in next(turns)]
    started = time.perf_counter()

    async def one(moment: float, query: Query) -> RequestRecord:
        await asyncio.sleep(started + moment - time.perf_counter())
        return await _heard(ask, query, started + moment)

    heard = await asyncio.gather(*(one(*planned) for planned in plan))
    return LoadRun(tuple(heard), seconds)


def pregenerate(turns: Iterator[Burst], tokens: int) -> Iterator[Burst]:
    """The same turns, the first of them written beforehand: writing must not cost time while measuring."""
    first: list[Burst] = []
    while sum(len(pair.ids) for turn in first for query in turn for pair in query) < tokens:
        first.append(next(turns))
    return chain(first, turns)


def poisson_arrivals(rng: Random, rate: float, seconds: float) -> list[float]:
    """Moments of a Poisson process."""
    moments, moment = [], rng.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


async def _heard(ask: SendQuery, query: Query, meant: float) -> RequestRecord:
    fate = await ask(query)
    return RequestRecord(fate, time.perf_counter() - meant, tuple(len(pair.ids) for pair in query))
