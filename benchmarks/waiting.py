"""How long requests wait at two workers, beside what the simulation says of the very same arrivals.

`python -m benchmarks.waiting` times passes on two single servers side by side, then has pairs that share
nothing come at random moments, at several shares of what those two can do. `--tiny` is the tests' toy.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from app.model import home
from app.settings import Settings
from benchmarks.load import Run, arrivals, calling, open_loop, written
from benchmarks.peers.ours import peers
from benchmarks.peers.peer import Peer
from benchmarks.queueing import Request, Speed, simulate
from benchmarks.replicas import (
    PATIENCE_S,
    SPREAD,
    WARM_S,
    Tally,
    asked,
    behind_one_address,
    environment,
    side_by_side,
)
from benchmarks.server import Served
from benchmarks.workloads import Words, Workload
from tests import tiny

SHARES = (0.3, 0.5, 0.7, 0.85)
BUDGET = 1024


def main() -> None:
    """Print how fast passes are, then what requests waited and what they were to wait."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.world(Path(folder)) if given.tiny else Settings()
        engine = home.engine(settings, lambda *_: None)
        tokens = 64 if given.tiny else 256
        workload = replace(SPREAD, tokens=(tokens, tokens))
        asking = Asking(peers(list(engine.models))[0], Words(engine.text), workload, given.seconds)
        del engine
        told = {**environment(settings), "SPARSERM_BATCH_TOKENS": str(BUDGET)}
        with side_by_side(told) as servers:
            speed = asking.speed(servers)
        peak = 2 / (speed.token_s * tokens)
        load = os.getloadavg()[0]
        print(
            f"a pass {speed.pass_s * 1e3:.1f} ms, a token {speed.token_s * 1e3:.3f} ms: two replicas "
            f"at most {peak:.2f} pairs/s; load average {load:.2f}"
        )
        with behind_one_address(told) as (server,):
            asking.closed([server], 4, WARM_S)
            for share in SHARES:
                measured, expected = asking.compared(server, speed, share * peak)
                print(f"at {share:.0%}: measured {_said(measured)}; simulated {_said(expected)}", flush=True)


class Asking:
    """How servers are asked: by one peer, for so many seconds, for pairs that share nothing."""

    def __init__(self, peer: Peer, words: Words, workload: Workload, seconds: float) -> None:
        self._peer = peer
        self._words = words
        self._workload = workload
        self._seconds = seconds
        self._tokens = workload.tokens[0]

    def speed(self, servers: Sequence[Served]) -> Speed:
        """From full passes what a token takes, from passes of one pair what comes on top."""
        self.closed(servers, 1, WARM_S)
        full, alone = (self.closed(servers, voices, self._seconds) for voices in (16, 1))
        pairs = sum(len(run.heard) for run in full) / len(full)
        token_s = max(run.seconds for run in full) / (pairs * self._tokens)
        one = statistics.median(heard.took for run in alone for heard in run.heard)
        return Speed(max(one - self._tokens * token_s, 0.0), token_s, BUDGET)

    def closed(self, servers: Sequence[Served], voices: int, seconds: float) -> list[Run]:
        """All servers at once, each with so many voices."""
        workload = replace(self._workload, voices=voices * len(servers))
        return asked(self._peer, self._words, servers, workload, Tally(seconds), seed=voices)

    def compared(self, server: Served, speed: Speed, rate: float) -> tuple[list[float], list[float]]:
        """Seconds that requests took, and those that the simulation says they take."""

        async def run() -> Run:
            turns = written(self._workload.turns(self._words, Random(f"words at {rate}")), 20_000)
            async with calling(self._peer, [server.url], patience_s=PATIENCE_S) as caller:
                rng = Random(f"{rate}")
                return await open_loop(caller.ask, turns, rate=rate, seconds=self._seconds, rng=rng)

        moments = arrivals(Random(f"{rate}"), rate, self._seconds)
        requests = [Request(at, self._tokens - 1, 1, i) for i, at in enumerate(moments)]
        return [heard.took for heard in asyncio.run(run()).heard], simulate(requests, speed, 2)


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
