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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from app.reward import loading
from app.settings import Settings
from benchmarks import machine, summary_statistics
from benchmarks.interleaving import Servers, resumed, suspended
from benchmarks.load_generator import LoadRun, Outcome, SendQuery, open_client, pregenerate, run_closed_loop
from benchmarks.peers.ours import peers
from benchmarks.peers.peer import Peer
from benchmarks.server import SPARSERM_COMMAND, ServerProcess, find_free_port, run_server
from benchmarks.workloads import Query, TextGenerator, Workload, select_workloads
from tests.support import tiny

ALONE, WORKERS, RAY = "two single servers", "two workers", "two replicas on Ray"
SPREAD, GROUPED = select_workloads(["unique-16", "groups-8-75-apart"])
WARM_S, PATIENCE_S, WRITTEN = 2.0, 300.0, 20_000


def main() -> None:
    """Print every round, then ratios."""
    given = _arguments()
    with ExitStack() as stack:
        ground = stack.enter_context(grounds(toy=given.tiny))
        course = Course(ground, given.seconds)
        all_ = {
            name: stack.enter_context(suspended(begun(ground.environment)))
            for name, begun in CONTENDERS.items()
        }
        for round_ in range(given.rounds):
            for name in sorted(all_, reverse=bool(round_ % 2)):
                with resumed(all_[name]) as servers:
                    course.run(name, servers, round_)
    course.report()


@dataclass(frozen=True, slots=True)
class Ground:
    """What all are asked for, by whom, in pairs of how many tokens, and what servers are told."""

    peer: Peer
    words: TextGenerator
    tokens: int
    environment: dict[str, str]

    def sized(self, workload: Workload) -> Workload:
        """The same with pairs of this length."""
        return replace(workload, tokens=(self.tokens, self.tokens))


@contextmanager
def grounds(*, toy: bool) -> Iterator[Ground]:
    """The shipped models on processors, or the tests' toy."""
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.build_models(Path(folder)) if toy else Settings()
        engine = loading.load_engine(settings, lambda *_: None)
        peer, words = peers(list(engine.models))[0], TextGenerator(engine.text)
        del engine
        told = {
            **os.environ, "SPARSERM_DEVICE": "cpu", "SPARSERM_MODELS_DIR": str(settings.models_dir),
            "SPARSERM_CACHE_DIR": str(settings.cache), "SPARSERM_MAX_TOKENS": str(settings.max_tokens),
        }  # fmt: skip
        yield Ground(peer, words, 64 if toy else 256, told)


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

    async def ask(self, ask: SendQuery, query: Query) -> Outcome:
        """Ask, and count what comes in time."""
        self._began = self._began or time.perf_counter()
        fate = await ask(query)
        if fate is Outcome.GOOD and time.perf_counter() < self._began + self.seconds:
            self._tokens += sum(len(pair.ids) for pair in query)
        return fate


def asked(ground: Ground, servers: Servers, workload: Workload, tally: Tally, *, seed: int) -> list[LoadRun]:
    """All servers at once, the voices divided between them."""
    part = replace(ground.sized(workload), voices=workload.clients // len(servers))

    async def one(server: ServerProcess, rng: Random) -> LoadRun:
        turns = pregenerate(part.generate_bursts(ground.words, rng), WRITTEN)
        async with open_client(ground.peer, [server.url], timeout_s=PATIENCE_S) as caller:
            ask = partial(tally.ask, caller.send)
            return await run_closed_loop(ask, turns, part, seconds=tally.seconds, rng=rng)

    async def all_() -> list[LoadRun]:
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

    def __init__(self, ground: Ground, seconds: float) -> None:
        self._ground = ground
        self._seconds = seconds
        self._rates: dict[str, dict[int, float]] = {}
        self._saved: dict[str, dict[int, float]] = {}

    def run(self, name: str, servers: Servers, round_: int) -> None:
        """One round of one contender."""
        asked(self._ground, servers, SPREAD, Tally(WARM_S), seed=-1)
        before, tally = machine.measure_peak_gflops([]), Tally(self._seconds)
        runs = asked(self._ground, servers, SPREAD, tally, seed=round_)
        saved = self._share_saved(servers[:1], round_)
        after, load = machine.measure_peak_gflops([]), os.getloadavg()[0]
        self._rates.setdefault(name, {})[round_] = tally.rate
        self._saved.setdefault(name, {})[round_] = saved
        fates = [summary_statistics.count_outcomes(run) for run in runs]
        print(
            f"round {round_}, {name}: {tally.rate:.0f} tokens/s, groups save {saved:.1%} of their tokens; "
            f"{fates}; GEMM peak {before:.0f} and {after:.0f} GFLOP/s, load average {load:.2f}",
            flush=True,
        )

    def report(self) -> None:
        """Ratios, round by round."""
        for name in (WORKERS, RAY):
            rates = summary_statistics.ratio_by_round(self._rates[name], self._rates[ALONE])
            saved = summary_statistics.ratio_by_round(self._saved[name], self._saved[ALONE])
            print(f"{name}: {rates:.3f} of the tokens/s of {ALONE}; {saved:.3f} of one server's sharing")

    def _share_saved(self, servers: Servers, round_: int) -> float:
        """Of the tokens of groups whose responses come one by one, those that were not computed."""
        before = [_told(servers, name) for name in ("tokens_saved", "tokens")]
        asked(self._ground, servers, GROUPED, Tally(self._seconds / 2), seed=1000 + round_)
        saved, tokens = (
            _told(servers, name) - was for name, was in zip(("tokens_saved", "tokens"), before, strict=True)
        )
        return saved / tokens


def _serve(told: dict[str, str], *options: str) -> AbstractContextManager[ServerProcess]:
    port = find_free_port()
    return run_server([*SPARSERM_COMMAND, str(port), *options], told, port=port, ready="/ready")


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
