"""Two workers, and two replicas on Ray, of one thread each, against two single servers side by side.

`python -m benchmarks.replicas` measures tokens a second on pairs that share nothing, and the share of tokens
saved when responses to one prompt come one by one, against one single server. They take short turns, because
a machine that is shared is now faster and now slower; whoever does not have the turn is stopped altogether.
With `--tiny` it is the tests' toy.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import psutil

from app.model import home
from app.settings import Settings
from benchmarks import figures, machine
from benchmarks.load import Ask, Fate, Run, calling, closed, written
from benchmarks.peers.ours import peers
from benchmarks.peers.peer import Peer
from benchmarks.server import PROGRAM, Served, free_port, started
from benchmarks.workloads import Query, Words, Workload, chosen
from tests import tiny

ALONE, WORKERS, RAY = "two single servers", "two workers", "two replicas on Ray"
SPREAD, GROUPED = chosen(["unique-16", "groups-8-75-apart"])
WARM_S, PATIENCE_S = 2.0, 300.0
Servers = Sequence[Served]


def main() -> None:
    """Print every round, then ratios."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.world(Path(folder)) if given.tiny else Settings()
        engine = home.engine(settings, lambda *_: None)
        ours, tokens = peers(list(engine.models))[0], 64 if given.tiny else 256
        course = Course(ours, Words(engine.text), seconds=given.seconds, tokens=tokens)
        del engine
        told = environment(settings)
        with ExitStack() as stack:
            all_ = {name: stack.enter_context(_resting(begun(told))) for name, begun in CONTENDERS.items()}
            for round_ in range(given.rounds):
                for name in sorted(all_, reverse=bool(round_ % 2)):
                    with _awake(all_[name]) as servers:
                        course.run(name, servers, round_)
    course.report()


def environment(settings: Settings) -> dict[str, str]:
    """What servers are told of these settings, on processors."""
    return {
        **os.environ, "SPARSERM_DEVICE": "cpu", "SPARSERM_MODELS_DIR": str(settings.models_dir),
        "SPARSERM_CACHE_DIR": str(settings.cache), "SPARSERM_MAX_TOKENS": str(settings.max_tokens),
    }  # fmt: skip


class Tally:
    """Tokens answered while everybody is still asking; how long the last answers take is chance."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = 0.0
        self._tokens = 0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._tokens / self.seconds

    async def ask(self, ask: Ask, query: Query) -> Fate:
        """Ask, and count what comes in time."""
        self._began = self._began or time.perf_counter()
        fate = await ask(query)
        if fate is Fate.GOOD and time.perf_counter() < self._began + self.seconds:
            self._tokens += sum(len(pair.ids) for pair in query)
        return fate


def asked(
    peer: Peer, words: Words, servers: Servers, workload: Workload, tally: Tally, *, seed: int
) -> list[Run]:
    """All servers at once, the voices divided between them."""
    part = replace(workload, voices=workload.voices // len(servers))

    async def one(server: Served, rng: Random) -> Run:
        turns = written(part.turns(words, rng), 20_000)
        async with calling(peer, [server.url], patience_s=PATIENCE_S) as caller:
            ask = partial(tally.ask, caller.ask)
            return await closed(ask, turns, part, seconds=tally.seconds, rng=rng)

    async def all_() -> list[Run]:
        rngs = [Random(f"{workload.name} {seed} {i}") for i in range(len(servers))]
        return await asyncio.gather(*map(one, servers, rngs))

    return asyncio.run(all_())


@contextmanager
def side_by_side(told: dict[str, str]) -> Iterator[Servers]:
    """Two servers of one thread each."""
    given = {**told, "SPARSERM_THREADS": "1"}
    with _serve(given) as one, _serve(given) as other:
        yield [one, other]


@contextmanager
def behind_one_address(told: dict[str, str], *options: str) -> Iterator[Servers]:
    """Two workers of one thread each, or whoever the options say runs them."""
    with _serve({**told, "SPARSERM_THREADS": "2"}, "--workers", "2", *options) as server:
        yield [server]


class Course:
    """What each contender goes through, and what was measured on it."""

    def __init__(self, peer: Peer, words: Words, *, seconds: float, tokens: int) -> None:
        self._peer = peer
        self._words = words
        self._seconds = seconds
        self._lengths = (tokens, tokens)
        self._rates: dict[str, dict[int, float]] = {}
        self._saved: dict[str, dict[int, float]] = {}

    def run(self, name: str, servers: Servers, round_: int) -> None:
        """One round of one contender."""
        self._asked(servers, SPREAD, Tally(WARM_S), seed=-1)
        before, tally = machine.peak([]), Tally(self._seconds)
        runs = self._asked(servers, SPREAD, tally, seed=round_)
        saved = self._share_saved(servers[:1], round_)
        after, load = machine.peak([]), os.getloadavg()[0]
        self._rates.setdefault(name, {})[round_] = tally.rate
        self._saved.setdefault(name, {})[round_] = saved
        fates = [figures.fates(run) for run in runs]
        print(
            f"round {round_}, {name}: {tally.rate:.0f} tokens/s, groups save {saved:.1%} of their tokens; "
            f"{fates}; GEMM peak {before:.0f} and {after:.0f} GFLOP/s, load average {load:.2f}",
            flush=True,
        )

    def report(self) -> None:
        """Ratios, round by round."""
        for name in (WORKERS, RAY):
            rates = figures.ratios(self._rates[name], self._rates[ALONE])
            saved = figures.ratios(self._saved[name], self._saved[ALONE])
            print(f"{name}: {rates:.3f} of the tokens/s of {ALONE}; {saved:.3f} of one server's sharing")

    def _share_saved(self, servers: Servers, round_: int) -> float:
        """Of the tokens of groups whose responses come one by one, those that were not computed."""
        before = [_told(servers, name) for name in ("tokens_saved", "tokens")]
        self._asked(servers, GROUPED, Tally(self._seconds / 2), seed=1000 + round_)
        saved, tokens = (
            _told(servers, name) - was for name, was in zip(("tokens_saved", "tokens"), before, strict=True)
        )
        return saved / tokens

    def _asked(self, servers: Servers, workload: Workload, tally: Tally, seed: int) -> list[Run]:
        workload = replace(workload, tokens=self._lengths)
        return asked(self._peer, self._words, servers, workload, tally, seed=seed)


@contextmanager
def _resting(starting: AbstractContextManager[Servers]) -> Iterator[Servers]:
    """Start servers, and stop all of their processes for as long as they are not awake."""
    with starting as servers:
        _tell(servers, psutil.Process.suspend)
        try:
            yield servers
        finally:
            _tell(servers, psutil.Process.resume)


@contextmanager
def _awake(servers: Servers) -> Iterator[Servers]:
    _tell(servers, psutil.Process.resume)
    try:
        yield servers
    finally:
        _tell(servers, psutil.Process.suspend)


def _tell(servers: Servers, what: Callable[[psutil.Process], None]) -> None:
    for server in servers:
        root = psutil.Process(server.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                what(process)


def _serve(told: dict[str, str], *options: str) -> AbstractContextManager[Served]:
    port = free_port()
    return started([*PROGRAM, str(port), *options], told, port=port, ready="/ready")


CONTENDERS: dict[str, Callable[[dict[str, str]], AbstractContextManager[Servers]]] = {
    ALONE: side_by_side,
    WORKERS: behind_one_address,
    RAY: lambda told: behind_one_address(told, "--ray"),
}


def _told(servers: Servers, name: str) -> float:
    return sum(server.metric(f"sparserm_{name}_total") for server in servers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=18.0, help="that each is asked in a turn")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
