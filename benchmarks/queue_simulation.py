"""How long requests wait: replicas that gather while they compute, simulated.

A pass takes a moment and so much a token that is new to it; what arrives meanwhile waits, and the next pass
takes the oldest that its budget holds. A prompt that is remembered, or that shares the pass, is not new.
"""

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Speed:
    """What a pass and a token take, what a pass may hold, how many tokens of prompts are remembered."""

    pass_s: float
    token_s: float
    budget: int
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One response to score: when it comes, its tokens, and the prompt it answers."""

    at: float
    prompt: int
    response: int
    group: int


@dataclass(slots=True)
class Replica:
    """One server: what waits, what it computes, which prompts it remembers."""

    speed: Speed
    waiting: deque[int] = field(default_factory=deque)
    running: tuple[int, ...] = ()
    tokens: int = 0
    known: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def start(self, now: float, requests: Sequence[Request]) -> float:
        """Take the next pass; when it ends."""
        batch: list[int] = []
        fresh: set[int] = set()
        new = 0
        while self.waiting:
            request = requests[self.waiting[0]]
            cost = request.response
            if request.group not in self.known and request.group not in fresh:
                cost += request.prompt
            if batch and new + cost > self.speed.budget:
                break
            new += cost
            fresh.add(request.group)
            batch.append(self.waiting.popleft())
        self.running = tuple(batch)
        for i in batch:
            self._remember(requests[i])
        return now + self.speed.pass_s + new * self.speed.token_s

    def _remember(self, request: Request) -> None:
        self.known[request.group] = request.prompt
        self.known.move_to_end(request.group)
        while sum(self.known.values()) > self.speed.memory:
            self.known.popitem(last=False)


Route = Callable[[Request, Sequence[Replica]], Replica]


def shortest(_: Request, replicas: Sequence[Replica]) -> Replica:
    """To whoever has the fewest tokens to do."""
    return min(replicas, key=lambda one: one.tokens)


def by_prompt(request: Request, replicas: Sequence[Replica]) -> Replica:
    """Responses to one prompt meet, whatever waits there."""
    return replicas[hash((request.group,)) % len(replicas)]


def simulate(requests: Sequence[Request], speed: Speed, count: int, route: Route = shortest) -> list[float]:
    """Seconds from coming to answer of every request, which come in order of time."""
    replicas = [Replica(speed) for _ in range(count)]
    took = [math.nan] * len(requests)
    ends: list[tuple[float, int]] = []

    def begin(at: int, now: float) -> None:
        heapq.heappush(ends, (replicas[at].start(now, requests), at))

    def end() -> None:
        now, at = heapq.heappop(ends)
        for i in replicas[at].running:
            took[i] = now - requests[i].at
            replicas[at].tokens -= requests[i].prompt + requests[i].response
        replicas[at].running = ()
        if replicas[at].waiting:
            begin(at, now)

    for i, request in enumerate(requests):
        while ends and ends[0][0] <= request.at:
            end()
        chosen = route(request, replicas)
        chosen.waiting.append(i)
        chosen.tokens += request.prompt + request.response
        if not chosen.running:
            begin(replicas.index(chosen), request.at)
    while ends:
        end()
    return took


def poisson(rate: float, seconds: float, prompt: int, response: int, *, seed: int = 0) -> list[Request]:
    """Requests at random moments, each with a prompt of its own."""
    rng = random.Random(seed)
    found: list[Request] = []
    now = rng.expovariate(rate)
    while now < seconds:
        found.append(Request(now, prompt, response, len(found)))
        now += rng.expovariate(rate)
    return found


def steps(every_s: float, count: int, groups: int, responses: int, prompt: int, tokens: int) -> list[Request]:
    """What an RLHF trainer sends: at every step all responses to so many prompts at once."""
    return [
        Request(step * every_s, prompt, tokens, step * groups + group)
        for step in range(count)
        for group in range(groups)
        for _ in range(responses)
    ]
