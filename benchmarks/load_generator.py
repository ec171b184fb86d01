"""Sends requests to a server over HTTP and records the outcome and latency of each.

Closed loop: each client sends its next burst after all responses to the last one, which measures the peak
rate. Open loop: requests are sent at random times, whether or not earlier ones were answered; latency counts
from the scheduled send time.
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

REFUSED_STATUSES = (429, 503)
# Servers close idle connections after five seconds; a request must not be sent at that moment.
KEEPALIVE_S = 2.0


class Outcome(StrEnum):
    """How a request ended: scored, refused by the server, lost in transport, or answered incorrectly."""

    GOOD = "good"
    REFUSED = "refused"
    LOST = "lost"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: outcome, latency from the scheduled send time, and the token counts of its items."""

    outcome: Outcome
    latency_s: float
    item_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadRun:
    """The records of a run, and the seconds from the first request to the last response."""

    records: tuple[RequestRecord, ...]
    seconds: float


SendQuery = Callable[[Query], Awaitable[Outcome]]


class LoadClient:
    """Sends the same queries to all servers of one peer."""

    def __init__(self, peer: Peer, urls: Sequence[str], http: httpx.AsyncClient) -> None:
        self._peer = peer
        self._urls = urls
        self._http = http

    async def send(self, query: Query) -> Outcome:
        """Send a query and return its outcome."""
        try:
            await self.scores(query)
        except httpx.HTTPStatusError as error:
            return Outcome.REFUSED if error.response.status_code in REFUSED_STATUSES else Outcome.WRONG
        except httpx.TransportError:
            return Outcome.LOST
        except (ValueError, LookupError, TypeError):
            return Outcome.WRONG
        return Outcome.GOOD

    async def scores(self, query: Query) -> list[float]:
        """The first server's score of every item; the other servers must have answered correctly too."""
        scores_by_server = await asyncio.gather(*(self._scores(url, query) for url in self._urls))
        return scores_by_server[0]

    async def _scores(self, url: str, query: Query) -> list[float]:
        requests = self._peer.build_requests(query)
        responses = await asyncio.gather(
            *(self._http.post(url + request.path, json=request.body) for request in requests)
        )
        scores = [
            score
            for response in responses
            for score in self._peer.read_scores(response.raise_for_status().json())
        ]
        if len(scores) != len(query) or not all(map(math.isfinite, scores)):
            raise ValueError(f"expected {len(query)} finite scores, got {scores}")
        return scores


@asynccontextmanager
async def open_client(
    peer: Peer, urls: Sequence[str], *, timeout_s: float, own_connections: bool = False
) -> AsyncIterator[LoadClient]:
    """Open a client; with `own_connections` every request uses a new connection."""
    headers = {"Connection": "close"} if own_connections else {}
    if peer.timeout_header:
        headers[peer.timeout_header] = str(timeout_s)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S)
    async with httpx.AsyncClient(
        headers=headers, timeout=timeout_s, limits=limits, verify=ssl.create_default_context()
    ) as http:
        yield LoadClient(peer, urls, http)


async def run_closed_loop(
    send: SendQuery, bursts: Iterator[Burst], workload: Workload, *, seconds: float, rng: Random
) -> LoadRun:
    """Run `workload.clients` clients; each sends burst after burst, and starts none after `seconds`."""
    records: list[RequestRecord] = []
    first_bursts = list(islice(bursts, workload.clients))
    started = time.perf_counter()

    async def send_query(query: Query) -> None:
        await asyncio.sleep(rng.uniform(0, workload.spread_s))
        records.append(await _send_and_record(send, query, time.perf_counter()))

    async def run_client(burst: Burst) -> None:
        await asyncio.gather(*(send_query(query) for query in burst))
        while time.perf_counter() < started + seconds:
            await asyncio.gather(*(send_query(query) for query in next(bursts)))

    await asyncio.gather(*(run_client(burst) for burst in first_bursts))
    return LoadRun(tuple(records), time.perf_counter() - started)


async def run_open_loop(
    send: SendQuery, bursts: Iterator[Burst], *, rate: float, seconds: float, rng: Random
) -> LoadRun:
    """Send requests at random times, on average `rate` per second; the run's seconds are those of sending."""
    arrivals = [(moment, query) for moment in poisson_arrivals(rng, rate, seconds) for query in next(bursts)]
    started = time.perf_counter()

    async def send_at(moment: float, query: Query) -> RequestRecord:
        await asyncio.sleep(started + moment - time.perf_counter())
        return await _send_and_record(send, query, started + moment)

    records = await asyncio.gather(*(send_at(*arrival) for arrival in arrivals))
    return LoadRun(tuple(records), seconds)


def pregenerate(bursts: Iterator[Burst], tokens: int) -> Iterator[Burst]:
    """The same bursts; the first `tokens` tokens are generated now, which saves time while measuring."""
    first: list[Burst] = []
    while sum(len(item.ids) for burst in first for query in burst for item in query) < tokens:
        first.append(next(bursts))
    return chain(first, bursts)


def poisson_arrivals(rng: Random, rate: float, seconds: float) -> list[float]:
    """The times of a Poisson process."""
    moments, moment = [], rng.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


async def _send_and_record(send: SendQuery, query: Query, scheduled: float) -> RequestRecord:
    outcome = await send(query)
    return RequestRecord(outcome, time.perf_counter() - scheduled, tuple(len(item.ids) for item in query))
