"""How long requests wait at two workers, beside what the simulation says of the very same arrivals.

`python -m benchmarks.queueing_delay` times passes on two single servers side by side, then has pairs that share
nothing come at random moments, at several shares of what those two can do. `--tiny` is the tests' toy.
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
from benchmarks.queue_simulation import Request, Speed, simulate
from benchmarks.replicas import (
    PATIENCE_S,
    SPREAD,
    WARM_S,
    WRITTEN,
    Ground,
    Tally,
    asked,
    behind_one_address,
    grounds,
    side_by_side,
)
from benchmarks.server import ServerProcess

SHARES = (0.3, 0.5, 0.7, 0.85)
BUDGET = 1024


def main() -> None:
    """Print how fast passes are, then what requests waited and what they were to wait."""
    given = _arguments()
    with grounds(toy=given.tiny) as ground:
        told = {**ground.environment, "SPARSERM_MAX_BATCH_TOKENS": str(BUDGET)}
        with side_by_side(told) as servers:
            speed = _speed(ground, servers, given.seconds)
        peak, load = 2 / (speed.token_s * ground.tokens), os.getloadavg()[0]
        print(
            f"a pass {speed.pass_s * 1e3:.1f} ms, a token {speed.token_s * 1e3:.3f} ms: two replicas "
            f"at most {peak:.2f} pairs/s; load average {load:.2f}"
        )
        with behind_one_address(told) as servers:
            _closed(ground, servers, 4, WARM_S)
            for share in SHARES:
                rate = share * peak
                measured = asyncio.run(_measured(ground, servers[0], rate, given.seconds))
                expected = simulate(_requests(ground, rate, given.seconds), speed, 2)
                print(f"at {share:.0%}: measured {_said(measured)}; simulated {_said(expected)}", flush=True)


def _speed(ground: Ground, servers: Servers, seconds: float) -> Speed:
    """From full passes what a token takes, from passes of one pair what comes on top."""
    _closed(ground, servers, 1, WARM_S)
    full, alone = (_closed(ground, servers, voices, seconds) for voices in (16, 1))
    pairs = sum(len(run.records) for run in full) / len(full)
    token_s = max(run.seconds for run in full) / (pairs * ground.tokens)
    one = statistics.median(heard.latency_s for run in alone for heard in run.records)
    return Speed(max(one - ground.tokens * token_s, 0.0), token_s, BUDGET)


def _closed(ground: Ground, servers: Servers, voices: int, seconds: float) -> list[LoadRun]:
    """All servers at once, each with so many voices."""
    workload = replace(SPREAD, clients=voices * len(servers))
    return asked(ground, servers, workload, Tally(seconds), seed=voices)


async def _measured(ground: Ground, server: ServerProcess, rate: float, seconds: float) -> list[float]:
    """Seconds that requests took which came at random moments."""
    turns = pregenerate(
        ground.sized(SPREAD).generate_bursts(ground.words, Random(f"words at {rate}")), WRITTEN
    )
    async with open_client(ground.peer, [server.url], timeout_s=PATIENCE_S) as caller:
        run = await run_open_loop(caller.send, turns, rate=rate, seconds=seconds, rng=Random(f"{rate}"))
    return [heard.latency_s for heard in run.records]


def _requests(ground: Ground, rate: float, seconds: float) -> list[Request]:
    """The same for the simulation."""
    moments = poisson_arrivals(Random(f"{rate}"), rate, seconds)
    return [Request(at, ground.tokens - 1, 1, i) for i, at in enumerate(moments)]


def _said(seconds: Sequence[float]) -> str:
    deciles = statistics.quantiles(seconds, n=10)
    return f"mean {statistics.fmean(seconds):.3f}, median {deciles[4]:.3f}, p90 {deciles[8]:.3f} s"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a measurement asks")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
