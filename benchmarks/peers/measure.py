"""One peer under one workload: warmed up, driven, and set beside what the machine could do meanwhile."""

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from benchmarks import machine, summary_statistics
from benchmarks.load_generator import LoadRun, open_client, pregenerate, run_closed_loop, run_open_loop
from benchmarks.peers.peer import Peer
from benchmarks.reference import Reference
from benchmarks.results_log import BareForward, LoadPoint, Measurement
from benchmarks.server import ServerProcess
from benchmarks.workloads import Burst, TextGenerator, Workload, warm_up_workload

PATIENCE_S = 600.0
AHEAD = 4000  # tokens a second that are written beforehand
FRACTIONS = (0.5, 0.8, 1.1, 1.5)
BARE = (192, 256)
GIVEN_UP = 4  # times the time a good answer may take


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs beside a peer and a workload; `slo_s` is how long a good answer may take."""

    reference: Reference
    words: TextGenerator
    seconds: float
    slo_s: float
    warm: Workload = field(default_factory=warm_up_workload)

    def bare(self, round_: int) -> BareForward:
        """What one pair takes without any server around it."""
        (pair,) = self.words.generate_group(Random(secrets.randbits(48)), 1, *BARE)
        return BareForward(round_, self.reference.time_forward(pair))

    async def block(
        self, peer: Peer, servers: Sequence[ServerProcess], workload: Workload, round_: int
    ) -> Measurement:
        """Words are new every time, so that no cache knows them."""
        seed, load = secrets.randbits(48), os.getloadavg()[0]
        rng, urls = Random(seed), [one.url for one in servers]
        turns = pregenerate(workload.generate_bursts(self.words, rng), int(AHEAD * self.seconds))
        async with open_client(
            peer, urls, timeout_s=PATIENCE_S, own_connections=workload.own_connections
        ) as caller:
            await run_closed_loop(
                caller.send, self.warm.generate_bursts(self.words, rng), self.warm, seconds=0, rng=rng
            )
            before, counted = (
                machine.measure_peak_gflops(self.reference.matrix_shapes),
                _counters(peer, servers),
            )
            async with machine.ResourceMonitor([one.pid for one in servers]) as watch:
                run = await run_closed_loop(caller.send, turns, workload, seconds=self.seconds, rng=rng)
            after = machine.measure_peak_gflops(self.reference.matrix_shapes)
        lengths = summary_statistics.scored_lengths(run)
        return Measurement(
            peer=peer.name, compared_with=peer.compared_with, workload=workload.name, round=round_, seed=seed,
            at=datetime.now(UTC).isoformat(timespec="seconds"), load_average=load, peaks=(before, after),
            steady=machine.is_steady(before, after, watch.shares["others"]), seconds=run.seconds,
            outcomes=summary_statistics.count_outcomes(run), pairs=len(lengths), tokens=sum(lengths),
            gflops=self._gflops(peer, workload, lengths),
            latencies=tuple(round(took, 4) for took in summary_statistics.good_latencies(run)), cores=machine.count_cores(),
            shares=watch.shares, resident_mib=(watch.initial_mib, watch.max_mib),
            counters={name: now - counted[name] for name, now in _counters(peer, servers).items()},
            curve=await self._curve(peer, urls, run, turns, rng) if workload.open_loop else (),
        )  # fmt: skip

    def _gflops(self, peer: Peer, workload: Workload, lengths: Sequence[int]) -> float | None:
        if workload.shares_prompts:
            return None
        server = peer.server
        return server.copies * sum(self.reference.flops(server.depth, n) for n in lengths) / 1e9

    async def _curve(
        self, peer: Peer, urls: Sequence[str], found: LoadRun, turns: Iterator[Burst], rng: Random
    ) -> tuple[LoadPoint, ...]:
        """Random arrivals at shares of the peak just found; what was given up ends before the next rate."""
        points = []
        peak = len(found.records) / found.seconds
        async with (
            open_client(peer, urls, timeout_s=GIVEN_UP * self.slo_s) as caller,
            open_client(peer, urls, timeout_s=PATIENCE_S) as patient,
        ):
            for fraction in FRACTIONS:
                run = await run_open_loop(
                    caller.send, turns, rate=fraction * peak, seconds=self.seconds, rng=rng
                )
                points += [_point(run, self.slo_s)] if run.records else []
                await patient.send(next(turns)[0])
        return tuple(points)


def _point(run: LoadRun, slo_s: float) -> LoadPoint:
    return LoadPoint(
        rate=len(run.records) / run.seconds,
        share_in_time=summary_statistics.share_in_time(run, slo_s),
        outcomes=summary_statistics.count_outcomes(run),
        quantiles=summary_statistics.latency_quantiles(summary_statistics.good_latencies(run)),
    )


def _counters(peer: Peer, servers: Sequence[ServerProcess]) -> dict[str, float]:
    return {name: sum(one.metric(series) for one in servers) for name, series in peer.counters.items()}
