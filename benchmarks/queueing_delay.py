"""Measures how long requests wait at two workers, and compares it with a simulation of the same arrivals.

`python -m benchmarks.queueing_delay` times forward passes on two single servers side by side, then sends
items that share nothing at random times, at several shares of the maximum rate. `--tiny` uses the tests' tiny
model.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from benchmarks.interleaving import Servers
from benchmarks.load_generator import LoadRun, open_client, poisson_arrivals, pregenerate, run_open_loop
from benchmarks.queue_simulation import ReplicaSpeed, SimulatedRequest, simulate
from benchmarks.replicas import (
    PREGENERATED_TOKENS,
    REQUEST_TIMEOUT_S,
    UNIQUE,
    WARM_UP_S,
    Setup,
    TokenCounter,
    run_clients,
    run_single_servers,
    run_two_workers,
    set_up,
)
from benchmarks.server import ServerProcess

# Request rates as shares of what two replicas can do at most.
LOAD_SHARES = (0.3, 0.5, 0.7, 0.85)
MAX_BATCH_TOKENS = 1024


def main() -> None:
    """Print the speed of forward passes, then the measured and the simulated latencies."""
    args = _parse_arguments()
    with set_up(tiny_models=args.tiny) as setup:
        environment = {**setup.environment, "SPARSERM_MAX_BATCH_TOKENS": str(MAX_BATCH_TOKENS)}
        with run_single_servers(environment) as servers:
            speed = _measure_speed(setup, servers, args.seconds)
        peak_rate, load_average = 2 / (speed.token_s * setup.item_tokens), os.getloadavg()[0]
        print(
            f"a forward pass takes {speed.forward_pass_s * 1e3:.1f} ms "
            f"and {speed.token_s * 1e3:.3f} ms per token: "
            f"two replicas score at most {peak_rate:.2f} items/s; load average {load_average:.2f}"
        )
        with run_two_workers(environment) as servers:
            _run_closed_loop(setup, servers, 4, WARM_UP_S)
            for share in LOAD_SHARES:
                rate = share * peak_rate
                measured = asyncio.run(_measure_latencies(setup, servers[0], rate, args.seconds))
                simulated = simulate(_simulated_requests(setup, rate, args.seconds), speed, 2)
                print(
                    f"at {share:.0%}: measured {_summarise(measured)}; simulated {_summarise(simulated)}",
                    flush=True,
                )


def _measure_speed(setup: Setup, servers: Servers, seconds: float) -> ReplicaSpeed:
    """Seconds per token from full batches, and the constant seconds per pass from batches of one item."""
    _run_closed_loop(setup, servers, 1, WARM_UP_S)
    full_batches, single_items = (_run_closed_loop(setup, servers, clients, seconds) for clients in (16, 1))
    items = sum(len(run.records) for run in full_batches) / len(full_batches)
    token_s = max(run.seconds for run in full_batches) / (items * setup.item_tokens)
    single_item_s = statistics.median(record.latency_s for run in single_items for record in run.records)
    forward_pass_s = max(single_item_s - setup.item_tokens * token_s, 0.0)
    return ReplicaSpeed(forward_pass_s, token_s, MAX_BATCH_TOKENS)


def _run_closed_loop(setup: Setup, servers: Servers, clients: int, seconds: float) -> list[LoadRun]:
    """Load all servers at once, each with `clients` clients."""
    workload = replace(UNIQUE, clients=clients * len(servers))
    return run_clients(setup, servers, workload, TokenCounter(seconds), seed=clients)


async def _measure_latencies(setup: Setup, server: ServerProcess, rate: float, seconds: float) -> list[float]:
    """The latencies of requests at random times."""
    workload = setup.resize(UNIQUE)
    bursts = workload.generate_bursts(setup.generator, Random(f"words at {rate}"))
    async with open_client(setup.peer, [server.url], timeout_s=REQUEST_TIMEOUT_S) as client:
        run = await run_open_loop(
            client.send,
            pregenerate(bursts, PREGENERATED_TOKENS),
            rate=rate,
            seconds=seconds,
            rng=Random(f"{rate}"),
        )
    return [record.latency_s for record in run.records]


def _simulated_requests(setup: Setup, rate: float, seconds: float) -> list[SimulatedRequest]:
    """The same arrivals for the simulation."""
    moments = poisson_arrivals(Random(f"{rate}"), rate, seconds)
    return [SimulatedRequest(at, setup.item_tokens - 1, 1, i) for i, at in enumerate(moments)]


def _summarise(seconds: Sequence[float]) -> str:
    deciles = statistics.quantiles(seconds, n=10)
    return f"mean {statistics.fmean(seconds):.3f}, median {deciles[4]:.3f}, p90 {deciles[8]:.3f} s"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each load")
    parser.add_argument("--tiny", action="store_true", help="use the tests' tiny model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
