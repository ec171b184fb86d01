"""A simulation of how long requests wait at replicas that batch what arrives while they compute.

A forward pass takes a constant time plus a time per new token. Requests that arrive meanwhile wait; the next
pass takes the oldest ones that fit its token budget. A prompt that is cached, or that is already in the
batch, adds no new tokens.
"""

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReplicaSpeed:
    """Seconds per forward pass and per new token, the token budget, and the size of the prompt cache."""

    forward_pass_s: float
    token_s: float
    max_batch_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One response to score: arrival time, token counts, and the prompt it belongs to (`group`)."""

    at: float
    prompt: int
    response: int
    group: int


@dataclass(slots=True)
class SimulatedReplica:
    """One server: the indices of waiting and running requests, its pending tokens and its prompt cache."""

    speed: ReplicaSpeed
    waiting: deque[int] = field(default_factory=deque)
    running: tuple[int, ...] = ()
    tokens: int = 0
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def start_pass(self, now: float, requests: Sequence[SimulatedRequest]) -> float:
        """Move the next batch from waiting to running and return when its forward pass ends."""
        batch: list[int] = []
        batch_groups: set[int] = set()
        new_tokens = 0
        while self.waiting:
            request = requests[self.waiting[0]]
            cost = request.response
            if request.group not in self.cache and request.group not in batch_groups:
                cost += request.prompt
            if batch and new_tokens + cost > self.speed.max_batch_tokens:
                break
            new_tokens += cost
            batch_groups.add(request.group)
            batch.append(self.waiting.popleft())
        self.running = tuple(batch)
        for i in batch:
            self._cache_prompt(requests[i])
        return now + self.speed.forward_pass_s + new_tokens * self.speed.token_s

    def _cache_prompt(self, request: SimulatedRequest) -> None:
        self.cache[request.group] = request.prompt
        self.cache.move_to_end(request.group)
        while sum(self.cache.values()) > self.speed.cached_prompt_tokens:
            self.cache.popitem(last=False)


Route = Callable[[SimulatedRequest, Sequence[SimulatedReplica]], SimulatedReplica]


def route_to_fewest_tokens(_: SimulatedRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
    """The replica with the fewest pending tokens."""
    return min(replicas, key=lambda replica: replica.tokens)


def route_by_prompt(request: SimulatedRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
    """The same replica for all responses to a prompt, whatever its queue."""
    return replicas[hash((request.group,)) % len(replicas)]


def simulate(
    requests: Sequence[SimulatedRequest],
    speed: ReplicaSpeed,
    count: int,
    route: Route = route_to_fewest_tokens,
) -> list[float]:
    """The latency of every request at `count` replicas; requests must be ordered by arrival time."""
    replicas = [SimulatedReplica(speed) for _ in range(count)]
    latencies = [math.nan] * len(requests)
    pass_ends: list[tuple[float, int]] = []

    def start_pass(index: int, now: float) -> None:
        heapq.heappush(pass_ends, (replicas[index].start_pass(now, requests), index))

    def finish_pass() -> None:
        now, index = heapq.heappop(pass_ends)
        for i in replicas[index].running:
            latencies[i] = now - requests[i].at
            replicas[index].tokens -= requests[i].prompt + requests[i].response
        replicas[index].running = ()
        if replicas[index].waiting:
            start_pass(index, now)

    for i, request in enumerate(requests):
        while pass_ends and pass_ends[0][0] <= request.at:
            finish_pass()
        replica = route(request, replicas)
        replica.waiting.append(i)
        replica.tokens += request.prompt + request.response
        if not replica.running:
            start_pass(replicas.index(replica), request.at)
    while pass_ends:
        finish_pass()
    return latencies


def poisson_requests(
    rate: float, seconds: float, prompt: int, response: int, *, seed: int = 0
) -> list[SimulatedRequest]:
    """Requests at random times, each with its own prompt."""
    rng = random.Random(seed)
    requests: list[SimulatedRequest] = []
    now = rng.expovariate(rate)
    while now < seconds:
        requests.append(SimulatedRequest(now, prompt, response, len(requests)))
        now += rng.expovariate(rate)
    return requests


def training_step_requests(
    every_s: float, steps: int, groups: int, responses: int, prompt: int, tokens: int
) -> list[SimulatedRequest]:
    """The requests of an RLHF trainer: at every step all responses to `groups` prompts at once."""
    return [
        SimulatedRequest(step * every_s, prompt, tokens, step * groups + group)
        for step in range(steps)
        for group in range(groups)
        for _ in range(responses)
    ]
