"""Measures one peer under one workload: warm-up, load, and the machine's peak before and after."""

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

REQUEST_TIMEOUT_S = 600.0
# Tokens generated before a measurement, per second of it; more are generated while it runs.
PREGENERATED_TOKENS_PER_S = 4000
# Request rates of the open loop, as shares of the peak rate that the closed loop reached.
OPEN_LOOP_FRACTIONS = (0.5, 0.8, 1.1, 1.5)
# Prompt tokens and all tokens of the item that transformers alone is timed with.
BARE_ITEM_TOKENS = (192, 256)
# An open-loop client gives a request up after so many times the latency objective.
GIVE_UP_FACTOR = 4


@dataclass(frozen=True, slots=True)
class MeasurementSetup:
    """What every measurement needs; `slo_s` is the latency objective, `seconds` the duration of the load."""

    reference: Reference
    generator: TextGenerator
    seconds: float
    slo_s: float
    warm_up: Workload = field(default_factory=warm_up_workload)

    def measure_bare_forward(self, round_: int) -> BareForward:
        """Time transformers alone on one item, without a server."""
        (item,) = self.generator.generate_group(Random(secrets.randbits(48)), 1, *BARE_ITEM_TOKENS)
        return BareForward(round_, self.reference.time_forward(item))

    async def measure(
        self, peer: Peer, servers: Sequence[ServerProcess], workload: Workload, round_: int
    ) -> Measurement:
        """Measure a peer. The words are new every time, so that no cache knows them."""
        seed, load_average = secrets.randbits(48), os.getloadavg()[0]
        rng, urls = Random(seed), [server.url for server in servers]
        bursts = pregenerate(
            workload.generate_bursts(self.generator, rng), int(PREGENERATED_TOKENS_PER_S * self.seconds)
        )
        async with open_client(
            peer, urls, timeout_s=REQUEST_TIMEOUT_S, own_connections=workload.own_connections
        ) as client:
            warm_up_bursts = self.warm_up.generate_bursts(self.generator, rng)
            await run_closed_loop(client.send, warm_up_bursts, self.warm_up, seconds=0, rng=rng)
            peak_before = machine.measure_peak_gflops(self.reference.matrix_shapes)
            counters_before = _read_counters(peer, servers)
            async with machine.ResourceMonitor([server.pid for server in servers]) as monitor:
                run = await run_closed_loop(client.send, bursts, workload, seconds=self.seconds, rng=rng)
            peak_after = machine.measure_peak_gflops(self.reference.matrix_shapes)
        counters = {
            name: value - counters_before[name] for name, value in _read_counters(peer, servers).items()
        }
        lengths = summary_statistics.scored_lengths(run)
        return Measurement(
            peer=peer.name, compared_with=peer.compared_with, workload=workload.name, round=round_, seed=seed,
            at=datetime.now(UTC).isoformat(timespec="seconds"), load_average=load_average,
            peaks=(peak_before, peak_after),
            steady=machine.is_steady(peak_before, peak_after, monitor.shares["others"]), seconds=run.seconds,
            outcomes=summary_statistics.count_outcomes(run), pairs=len(lengths), tokens=sum(lengths),
            gflops=self._useful_gflops(peer, workload, lengths),
            latencies=tuple(round(latency, 4) for latency in summary_statistics.good_latencies(run)),
            cores=machine.count_cores(), shares=monitor.shares,
            resident_mib=(monitor.initial_mib, monitor.max_mib), counters=counters,
            curve=await self._open_loop_curve(peer, urls, run, bursts, rng) if workload.open_loop else (),
        )  # fmt: skip

    def _useful_gflops(self, peer: Peer, workload: Workload, lengths: Sequence[int]) -> float | None:
        """The operations of all scored items; None if they share prompts: servers then compute less."""
        if workload.shares_prompts:
            return None
        server = peer.server
        return server.copies * sum(self.reference.flops(server.depth, n) for n in lengths) / 1e9

    async def _open_loop_curve(
        self, peer: Peer, urls: Sequence[str], peak_run: LoadRun, bursts: Iterator[Burst], rng: Random
    ) -> tuple[LoadPoint, ...]:
        """Open loops at shares of the measured peak rate.

        After each rate one request without a short timeout waits until the server has finished the requests
        that clients gave up, so that they do not disturb the next rate.
        """
        points = []
        peak_rate = len(peak_run.records) / peak_run.seconds
        async with (
            open_client(peer, urls, timeout_s=GIVE_UP_FACTOR * self.slo_s) as client,
            open_client(peer, urls, timeout_s=REQUEST_TIMEOUT_S) as waiting_client,
        ):
            for fraction in OPEN_LOOP_FRACTIONS:
                rate = fraction * peak_rate
                run = await run_open_loop(client.send, bursts, rate=rate, seconds=self.seconds, rng=rng)
                points += [_load_point(run, self.slo_s)] if run.records else []
                await waiting_client.send(next(bursts)[0])
        return tuple(points)


def _load_point(run: LoadRun, slo_s: float) -> LoadPoint:
    return LoadPoint(
        rate=len(run.records) / run.seconds,
        share_in_time=summary_statistics.share_in_time(run, slo_s),
        outcomes=summary_statistics.count_outcomes(run),
        quantiles=summary_statistics.latency_quantiles(summary_statistics.good_latencies(run)),
    )


def _read_counters(peer: Peer, servers: Sequence[ServerProcess]) -> dict[str, float]:
    return {name: sum(server.metric(metric) for server in servers) for name, metric in peer.counters.items()}
