"""One peer under one workload: warmed up, driven, and set beside what the machine could do meanwhile."""

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from benchmarks import figures, machine
from benchmarks.journal import Bare, Block, Point
from benchmarks.load import Run, calling, closed, open_loop, written
from benchmarks.peers.peer import Peer
from benchmarks.reference import Reference
from benchmarks.server import Served
from benchmarks.workloads import Turn, Words, Workload, warming

PATIENCE_S = 600.0
AHEAD = 4000  # tokens a second that are written beforehand
FRACTIONS = (0.5, 0.8, 1.1, 1.5)
BARE = (192, 256)
GIVEN_UP = 4  # times the time a good answer may take


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs beside a peer and a workload; `slo_s` is how long a good answer may take."""

    reference: Reference
    words: Words
    seconds: float
    slo_s: float
    warm: Workload = field(default_factory=warming)

    def bare(self, round_: int) -> Bare:
        """What one pair takes without any server around it."""
        (pair,) = self.words.group(Random(secrets.randbits(48)), 1, *BARE)
        return Bare(round_, self.reference.forward_s(pair))

    async def block(self, peer: Peer, servers: Sequence[Served], workload: Workload, round_: int) -> Block:
        """Words are new every time, so that no cache knows them."""
        seed, load = secrets.randbits(48), os.getloadavg()[0]
        rng, urls = Random(seed), [one.url for one in servers]
        turns = written(workload.turns(self.words, rng), int(AHEAD * self.seconds))
        async with calling(
            peer, urls, patience_s=PATIENCE_S, own_connections=workload.own_connections
        ) as caller:
            await closed(caller.ask, self.warm.turns(self.words, rng), self.warm, seconds=0, rng=rng)
            before, counted = machine.peak(self.reference.shapes), _counters(peer, servers)
            async with machine.Watch([one.pid for one in servers]) as watch:
                run = await closed(caller.ask, turns, workload, seconds=self.seconds, rng=rng)
            after = machine.peak(self.reference.shapes)
        lengths = figures.lengths(run)
        return Block(
            peer=peer.name, against=peer.against, workload=workload.name, round=round_, seed=seed,
            at=datetime.now(UTC).isoformat(timespec="seconds"), load_average=load, peaks=(before, after),
            steady=machine.steady(before, after, watch.shares["others"]), seconds=run.seconds,
            fates=figures.fates(run), pairs=len(lengths), tokens=sum(lengths),
            gflops=self._gflops(peer, workload, lengths),
            latencies=tuple(round(took, 4) for took in figures.good(run)), cores=machine.cores(),
            shares=watch.shares, resident_mib=(watch.resident, watch.most),
            counters={name: now - counted[name] for name, now in _counters(peer, servers).items()},
            curve=await self._curve(peer, urls, run, turns, rng) if workload.arrivals else (),
        )  # fmt: skip

    def _gflops(self, peer: Peer, workload: Workload, lengths: Sequence[int]) -> float | None:
        if workload.shares:
            return None
        server = peer.server
        return server.copies * sum(self.reference.flops(server.depth, n) for n in lengths) / 1e9

    async def _curve(
        self, peer: Peer, urls: Sequence[str], found: Run, turns: Iterator[Turn], rng: Random
    ) -> tuple[Point, ...]:
        """Random arrivals at shares of the peak just found; what was given up ends before the next rate."""
        points = []
        peak = len(found.heard) / found.seconds
        async with (
            calling(peer, urls, patience_s=GIVEN_UP * self.slo_s) as caller,
            calling(peer, urls, patience_s=PATIENCE_S) as patient,
        ):
            for fraction in FRACTIONS:
                run = await open_loop(caller.ask, turns, rate=fraction * peak, seconds=self.seconds, rng=rng)
                points += [_point(run, self.slo_s)] if run.heard else []
                await patient.ask(next(turns)[0])
        return tuple(points)


def _point(run: Run, slo_s: float) -> Point:
    return Point(
        rate=len(run.heard) / run.seconds,
        share_in_time=figures.in_time(run, slo_s),
        fates=figures.fates(run),
        quantiles=figures.quantiles(figures.good(run)),
    )


def _counters(peer: Peer, servers: Sequence[Served]) -> dict[str, float]:
    return {name: sum(one.metric(series) for one in servers) for name, series in peer.counters.items()}
