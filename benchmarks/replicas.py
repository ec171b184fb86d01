"""Compares two workers, and two replicas on Ray, with two single servers side by side; one thread each.

`python -m benchmarks.replicas` measures tokens per second on items that share nothing, and the share of
tokens saved when responses to one prompt arrive one by one (against one single server). The contenders take
short turns, because the speed of a shared machine changes; while one is measured, the others are suspended.
`--tiny` uses the tests' tiny model.
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
from benchmarks import machine
from benchmarks.interleaving import Servers, resumed, suspended
from benchmarks.load_generator import LoadRun, Outcome, SendQuery, open_client, pregenerate, run_closed_loop
from benchmarks.peers.peer import Peer
from benchmarks.peers.sparserm import make_peers
from benchmarks.server import SPARSERM_COMMAND, ServerProcess, find_free_port, run_server_process
from benchmarks.summary_statistics import count_outcomes, ratio_by_round
from benchmarks.workloads import Query, TextGenerator, Workload, select_workloads
from tests.support import tiny

SINGLE_SERVERS, WORKERS, RAY = "two single servers", "two workers", "two replicas on Ray"
UNIQUE, GROUPED = select_workloads(["unique-16", "groups-8-75-apart"])
WARM_UP_S = 2.0
REQUEST_TIMEOUT_S = 300.0
PREGENERATED_TOKENS = 20_000


def main() -> None:
    """Print every round, then ratios."""
    args = _parse_arguments()
    with ExitStack() as stack:
        setup = stack.enter_context(set_up(tiny_models=args.tiny))
        comparison = ReplicaComparison(setup, args.seconds)
        contenders = {
            name: stack.enter_context(suspended(start(setup.environment)))
            for name, start in CONTENDERS.items()
        }
        for round_ in range(args.rounds):
            for name in sorted(contenders, reverse=bool(round_ % 2)):
                with resumed(contenders[name]) as servers:
                    comparison.run(name, servers, round_)
    comparison.report()


@dataclass(frozen=True, slots=True)
class Setup:
    """What all contenders share: how to request scores, the texts, the tokens per item, the environment."""

    peer: Peer
    generator: TextGenerator
    item_tokens: int
    environment: dict[str, str]

    def resize(self, workload: Workload) -> Workload:
        """The workload with items of `item_tokens` tokens."""
        return replace(workload, tokens=(self.item_tokens, self.item_tokens))


@contextmanager
def set_up(*, tiny_models: bool) -> Iterator[Setup]:
    """The setup for the shipped models on the CPU, or for the tests' tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.build_models(Path(folder)) if tiny_models else Settings()
        engine = loading.load_engine(settings, lambda *_: None)
        peer, generator = make_peers(list(engine.models))[0], TextGenerator(engine.text)
        del engine
        environment = {
            **os.environ, "SPARSERM_DEVICE": "cpu", "SPARSERM_MODELS_DIR": str(settings.models_dir),
            "SPARSERM_CACHE_DIR": str(settings.cache), "SPARSERM_MAX_TOKENS": str(settings.max_tokens),
        }  # fmt: skip
        yield Setup(peer, generator, 64 if tiny_models else 256, environment)


class TokenCounter:
    """Counts the tokens scored within `seconds`; later answers depend on chance and are not counted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = 0.0
        self._tokens = 0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self._tokens / self.seconds

    async def send(self, send: SendQuery, query: Query) -> Outcome:
        """Send a query and count its tokens if the answer comes in time."""
        self._started = self._started or time.perf_counter()
        outcome = await send(query)
        if outcome is Outcome.GOOD and time.perf_counter() < self._started + self.seconds:
            self._tokens += sum(len(item.ids) for item in query)
        return outcome


def run_clients(
    setup: Setup, servers: Servers, workload: Workload, counter: TokenCounter, *, seed: int
) -> list[LoadRun]:
    """Load all servers at once; the workload's clients are divided between them."""
    part = replace(setup.resize(workload), clients=workload.clients // len(servers))

    async def load_server(server: ServerProcess, rng: Random) -> LoadRun:
        bursts = pregenerate(part.generate_bursts(setup.generator, rng), PREGENERATED_TOKENS)
        async with open_client(setup.peer, [server.url], timeout_s=REQUEST_TIMEOUT_S) as client:
            send = partial(counter.send, client.send)
            return await run_closed_loop(send, bursts, part, seconds=counter.seconds, rng=rng)

    async def load_servers() -> list[LoadRun]:
        rngs = [Random(f"{workload.name} {seed} {i}") for i in range(len(servers))]
        return await asyncio.gather(*map(load_server, servers, rngs))

    return asyncio.run(load_servers())


@contextmanager
def run_single_servers(environment: dict[str, str]) -> Iterator[Servers]:
    """Two servers of one thread each."""
    one_thread = {**environment, "SPARSERM_THREADS": "1"}
    with _serve(one_thread) as first, _serve(one_thread) as second:
        yield [first, second]


@contextmanager
def run_two_workers(environment: dict[str, str], *options: str) -> Iterator[Servers]:
    """One server with two workers of one thread each; `--ray` runs them as Ray replicas."""
    with _serve({**environment, "SPARSERM_THREADS": "2"}, "--workers", "2", *options) as server:
        yield [server]


class ReplicaComparison:
    """Measures the contenders round by round and keeps their rates and saved shares."""

    def __init__(self, setup: Setup, seconds: float) -> None:
        self._setup = setup
        self._seconds = seconds
        self._rates: dict[str, dict[int, float]] = {}
        self._saved_shares: dict[str, dict[int, float]] = {}

    def run(self, name: str, servers: Servers, round_: int) -> None:
        """Measure one contender in one round."""
        run_clients(self._setup, servers, UNIQUE, TokenCounter(WARM_UP_S), seed=-1)
        peak_before, counter = machine.measure_peak_gflops([]), TokenCounter(self._seconds)
        runs = run_clients(self._setup, servers, UNIQUE, counter, seed=round_)
        saved_share = self._measure_saved_share(servers[:1], round_)
        peak_after, load_average = machine.measure_peak_gflops([]), os.getloadavg()[0]
        self._rates.setdefault(name, {})[round_] = counter.rate
        self._saved_shares.setdefault(name, {})[round_] = saved_share
        outcomes = [count_outcomes(run) for run in runs]
        print(
            f"round {round_}, {name}: {counter.rate:.0f} tokens/s, "
            f"groups save {saved_share:.1%} of their tokens; "
            f"{outcomes}; GEMM peak {peak_before:.0f} and {peak_after:.0f} GFLOP/s, "
            f"load average {load_average:.2f}",
            flush=True,
        )

    def report(self) -> None:
        """Print the ratios to the single servers."""
        for name in (WORKERS, RAY):
            rates = ratio_by_round(self._rates[name], self._rates[SINGLE_SERVERS])
            saved = ratio_by_round(self._saved_shares[name], self._saved_shares[SINGLE_SERVERS])
            print(
                f"{name}: {rates:.3f} of the tokens/s of {SINGLE_SERVERS}; "
                f"{saved:.3f} of one server's saved share"
            )

    def _measure_saved_share(self, servers: Servers, round_: int) -> float:
        """The share of tokens not computed when the responses of a group arrive one by one."""
        metrics = ("tokens_saved", "tokens")
        before = [_read_metric(servers, name) for name in metrics]
        run_clients(self._setup, servers, GROUPED, TokenCounter(self._seconds / 2), seed=1000 + round_)
        saved, tokens = (
            _read_metric(servers, name) - value for name, value in zip(metrics, before, strict=True)
        )
        return saved / tokens


def _serve(environment: dict[str, str], *options: str) -> AbstractContextManager[ServerProcess]:
    port = find_free_port()
    command = [*SPARSERM_COMMAND, str(port), *options]
    return run_server_process(command, environment, port=port, ready_path="/ready")


CONTENDERS: dict[str, Callable[[dict[str, str]], AbstractContextManager[Servers]]] = {
    SINGLE_SERVERS: run_single_servers,
    WORKERS: run_two_workers,
    RAY: lambda environment: run_two_workers(environment, "--ray"),
}


def _read_metric(servers: Servers, name: str) -> float:
    return sum(server.metric(f"sparserm_{name}_total") for server in servers)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=18.0, help="load on a contender in each round")
    parser.add_argument("--tiny", action="store_true", help="use the tests' tiny model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
