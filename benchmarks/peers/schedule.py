"""Which server, when: rounds in which every server has its turn, alone, and another one begins each time.

Servers are started anew in every round; or together, once, and stopped altogether while it is not their turn.
Then turns of one workload follow each other within a minute, in which a shared machine changes less.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks import machine
from benchmarks.interleaving import resumed, suspended
from benchmarks.load_generator import open_client
from benchmarks.peers.correctness_check import Gatekeeper
from benchmarks.peers.measure import FRACTIONS, PATIENCE_S, Bench
from benchmarks.peers.peer import LaunchContext, Peer, PeerServer
from benchmarks.results_log import BareForward, Measurement, ResultsLog, ServerStart
from benchmarks.server import ServerProcess, find_free_port, run_server
from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[2]
THREADING = ("OMP_", "KMP_", "GOMP_", "MKL_")
TRIES, AROUND_S = 2, 12.0
Step = tuple[Peer, Workload]


@dataclass(frozen=True, slots=True)
class Stint:
    """One server, started once, and everything it is asked until it is stopped."""

    round: int
    server: PeerServer
    steps: tuple[Step, ...]

    def seconds(self, each: float) -> float:
        """About how long it takes when measuring takes so many seconds each."""
        loops = sum(1 + len(FRACTIONS) * workload.open_loop for _, workload in self.steps)
        return self.server.copies * self.server.expected_start_s + len(self.steps) * AROUND_S + loops * each


def course(steps: Iterable[Step], rounds: int, done: Callable[[str, str, int], bool]) -> list[Stint]:
    """What is left to do; open loops come last, as they may leave a server with work nobody waits for."""
    by_server: dict[str, list[Step]] = {}
    for peer, workload in sorted(steps, key=lambda step: step[1].open_loop):
        by_server.setdefault(peer.server.name, []).append((peer, workload))
    stints = []
    for round_ in range(rounds):
        names = list(by_server)
        first = round_ % max(len(names), 1)
        for name in names[first:] + names[:first]:
            left = [step for step in by_server[name] if not done(step[0].name, step[1].name, round_)]
            if left:
                stints.append(Stint(round_, left[0][0].server, tuple(left)))
    return stints


def wanted(peers: Sequence[Peer], workloads: Sequence[Workload], *, named: bool) -> list[Step]:
    """Every peer under every workload; unless workloads were named, only under those it is there for."""
    return [
        (peer, workload)
        for peer in peers
        for workload in workloads
        if named
        or (
            (not workload.only_peers or peer.name in workload.only_peers)
            and (not peer.only_workloads or workload.name in peer.only_workloads)
        )
    ]


def in_turns(stints: Sequence[Stint]) -> list[tuple[Stint, Peer, Workload]]:
    """Round by round and workload by workload, servers in the order of their round."""
    return [
        (stint, peer, workload)
        for round_ in sorted({stint.round for stint in stints})
        for asked in dict.fromkeys(step[1] for stint in stints for step in stint.steps)
        for stint in stints
        for peer, workload in stint.steps
        if (stint.round, workload) == (round_, asked)
    ]


@dataclass(frozen=True, slots=True)
class Runner:
    """Walks a course: starts servers, times those who say what they should, keeps what was found."""

    bench: Bench
    gatekeeper: Gatekeeper
    journal: ResultsLog
    folder: Path
    say: Callable[[str], None]
    until: float = field(default=float("inf"))
    together: bool = False

    async def run(self, stints: Sequence[Stint]) -> bool:
        """Whether everything was done before time was up."""
        return await (self._in_turns(stints) if self.together else self._one_by_one(stints))

    async def _one_by_one(self, stints: Sequence[Stint]) -> bool:
        for stint in stints:
            self._prepare(stint)
            try:
                if time.monotonic() > self.until or not await self._stint(stint):
                    return False
            except (RuntimeError, psutil.Error) as error:
                self.say(f"  {stint.server.name}: {error}; see {self._log(stint.server)}")
        return True

    def _prepare(self, stint: Stint) -> None:
        """What has to be computed here, while no server runs."""
        for peer, _ in stint.steps:
            self.gatekeeper.prepare(peer)
        if stint.round not in {one.round for one in self.journal.entries if isinstance(one, BareForward)}:
            self.journal.append(self.bench.bare(stint.round))

    async def _stint(self, stint: Stint) -> bool:
        with self._started(stint.server) as servers:
            admitted = await self._admitted(stint, servers)
            for peer, workload in stint.steps:
                if time.monotonic() > self.until:
                    return False
                if peer.name in admitted:
                    await self._measure(peer, servers, workload, stint.round)
        return True

    async def _in_turns(self, stints: Sequence[Stint]) -> bool:
        """All servers at once; within a round one workload after the other, each asked of all."""
        for stint in stints:
            self._prepare(stint)
        with ExitStack() as stack:
            servers: dict[str, Sequence[ServerProcess]] = {}
            admitted = set[str]()
            for stint in {stint.server.name: stint for stint in reversed(stints)}.values():
                try:
                    servers[stint.server.name] = stack.enter_context(suspended(self._started(stint.server)))
                except (RuntimeError, psutil.Error) as error:
                    self.say(f"  {stint.server.name}: {error}; see {self._log(stint.server)}")
                    continue
                with resumed(servers[stint.server.name]) as mine:
                    admitted |= await self._admitted(stint, mine)
            for stint, peer, workload in in_turns(stints):
                if time.monotonic() > self.until:
                    return False
                if peer.name in admitted:
                    with resumed(servers[stint.server.name]) as mine:
                        await self._measure(peer, mine, workload, stint.round)
        return True

    async def _admitted(self, stint: Stint, servers: Sequence[ServerProcess]) -> set[str]:
        """The peers of a stint that say what they should; how its servers started is noted."""
        peers = {peer.name: peer for peer, _ in stint.steps}
        admitted = {name for name, one in peers.items() if await self._admit(one, servers, stint.round)}
        ready, resident = max(one.ready_s for one in servers), machine.resident_mib(_pids(servers))
        self.journal.append(ServerStart(stint.server.name, stint.round, ready, resident))
        return admitted

    async def _admit(self, peer: Peer, servers: Sequence[ServerProcess], round_: int) -> bool:
        async with open_client(peer, [one.url for one in servers], timeout_s=PATIENCE_S) as caller:
            try:
                gate = await self.gatekeeper.check(peer, caller, round_)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self.say(f"  {peer.name} does not answer as expected: {error!r}: NOT TIMED")
                return False
        self.journal.append(gate)
        verdict = "as it should" if gate.passed else "NOT TIMED"
        self.say(f"  {peer.name} scores within {gate.worst:.1e} of the reference: {verdict}")
        return gate.passed

    async def _measure(
        self, peer: Peer, servers: Sequence[ServerProcess], workload: Workload, round_: int
    ) -> None:
        """Again, if the machine was not steady; the last try is kept whatever it was."""
        for _ in range(TRIES):
            block = await self.bench.block(peer, servers, workload, round_)
            self.journal.append(block)
            self.say(f"  {_line(block)}")
            if block.steady:
                break

    @contextmanager
    def _started(self, server: PeerServer) -> Iterator[list[ServerProcess]]:
        """As many as it takes, one after the other."""
        self.say(f"starting {server.name}: {server.description}")
        checkpoint = self.bench.reference.checkpoint(server.depth, self.folder / "checkpoints")
        with ExitStack() as stack:
            yield [stack.enter_context(self._one(server, checkpoint)) for _ in range(server.copies)]

    @contextmanager
    def _one(self, server: PeerServer, checkpoint: Path) -> Iterator[ServerProcess]:
        place = LaunchContext(
            interpreter(server, self.folder), checkpoint, find_free_port(), machine.count_cores()
        )
        command = server.build_command(place)
        log = self._log(server)
        log.parent.mkdir(parents=True, exist_ok=True)
        env = environment(command.env)
        with run_server(command.args, env, port=place.port, ready=server.ready_path, log=log) as served:
            yield served

    def _log(self, server: PeerServer) -> Path:
        return self.folder / "logs" / f"{server.name}.log"


def interpreter(server: PeerServer, folder: Path) -> Path:
    """The python of a server's venv, or this one."""
    return folder / server.venv / "bin" / "python" if server.venv else Path(sys.executable)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What a server's process sees: nothing of how this one's threads were set up."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(THREADING)}
    return {**mine, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **given}


def _pids(servers: Sequence[ServerProcess]) -> list[int]:
    return [one.pid for one in servers]


def _line(block: Measurement) -> str:
    mark = "" if block.steady else "  (the machine was not steady)"
    others = block.shares["others"]
    return (
        f"{block.peer:<16} {block.workload:<18} {block.tokens_per_s:8.0f} tokens/s  {dict(block.outcomes)}  "
        f"peak {block.peaks[0]:.0f}/{block.peaks[1]:.0f} GFLOP/s, others {others:.0%}{mark}"
    )
