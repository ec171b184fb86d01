"""Runs a schedule: starts servers, checks their scores, measures the correct ones, stores the results."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks import machine
from benchmarks.interleaving import resumed, suspended
from benchmarks.load_generator import open_client
from benchmarks.peers.correctness_check import CorrectnessChecker
from benchmarks.peers.measure import REQUEST_TIMEOUT_S, MeasurementSetup
from benchmarks.peers.peer import LaunchContext, Peer, PeerServer
from benchmarks.peers.schedule import ServerSession, interleave_by_workload
from benchmarks.results_log import BareForward, Measurement, ResultsLog, ServerStart
from benchmarks.server import ServerProcess, find_free_port, run_server_process
from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[2]
# Prefixes of environment variables that configure this process's threads; servers do not inherit them.
THREADING_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_")
# A measurement is repeated once if the machine was not steady.
MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the sessions of a schedule and appends what it measures to `results`.

    No measurement starts after `deadline`. With `interleaved` all servers are started once and suspended in
    turn.
    """

    setup: MeasurementSetup
    checker: CorrectnessChecker
    results: ResultsLog
    folder: Path
    print_line: Callable[[str], None]
    deadline: float = field(default=float("inf"))
    interleaved: bool = False

    async def run(self, sessions: Sequence[ServerSession]) -> bool:
        """Run the sessions and return whether all were done before the deadline."""
        return await (self._run_interleaved(sessions) if self.interleaved else self._run_one_by_one(sessions))

    async def _run_one_by_one(self, sessions: Sequence[ServerSession]) -> bool:
        for session in sessions:
            self._compute_references(session)
            try:
                if time.monotonic() > self.deadline or not await self._run_session(session):
                    return False
            except (RuntimeError, psutil.Error) as error:
                self._print_failure(session.server, error)
        return True

    async def _run_session(self, session: ServerSession) -> bool:
        with self._start_copies(session.server) as servers:
            correct = await self._check_peers(session, servers)
            for peer, workload in session.steps:
                if time.monotonic() > self.deadline:
                    return False
                if peer.name in correct:
                    await self._measure(peer, servers, workload, session.round)
        return True

    async def _run_interleaved(self, sessions: Sequence[ServerSession]) -> bool:
        for session in sessions:
            self._compute_references(session)
        with ExitStack() as stack:
            servers, correct = await self._start_all(sessions, stack)
            for session, peer, workload in interleave_by_workload(sessions):
                if time.monotonic() > self.deadline:
                    return False
                if peer.name in correct:
                    with resumed(servers[session.server.name]) as running:
                        await self._measure(peer, running, workload, session.round)
        return True

    async def _start_all(
        self, sessions: Sequence[ServerSession], stack: ExitStack
    ) -> tuple[dict[str, Sequence[ServerProcess]], set[str]]:
        """Start every server suspended; return the servers by name, and the peers with correct scores."""
        servers: dict[str, Sequence[ServerProcess]] = {}
        correct = set[str]()
        first_sessions = {session.server.name: session for session in reversed(sessions)}
        for name, session in first_sessions.items():
            try:
                servers[name] = stack.enter_context(suspended(self._start_copies(session.server)))
            except (RuntimeError, psutil.Error) as error:
                self._print_failure(session.server, error)
                continue
            with resumed(servers[name]) as running:
                correct |= await self._check_peers(session, running)
        return servers, correct

    def _compute_references(self, session: ServerSession) -> None:
        """Compute in this process what the session is compared with, while no server runs."""
        for peer, _ in session.steps:
            self.checker.compute_expected(peer)
        measured_rounds = {entry.round for entry in self.results.entries if isinstance(entry, BareForward)}
        if session.round not in measured_rounds:
            self.results.append(self.setup.measure_bare_forward(session.round))

    async def _check_peers(self, session: ServerSession, servers: Sequence[ServerProcess]) -> set[str]:
        """The names of the session's peers with correct scores; also stores how the servers started."""
        peers = {peer.name: peer for peer, _ in session.steps}
        correct = {name for name, peer in peers.items() if await self._check(peer, servers, session.round)}
        ready_s = max(server.ready_s for server in servers)
        resident_mib = machine.resident_mib([server.pid for server in servers])
        self.results.append(ServerStart(session.server.name, session.round, ready_s, resident_mib))
        return correct

    async def _check(self, peer: Peer, servers: Sequence[ServerProcess], round_: int) -> bool:
        urls = [server.url for server in servers]
        async with open_client(peer, urls, timeout_s=REQUEST_TIMEOUT_S) as client:
            try:
                result = await self.checker.check(peer, client, round_)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self.print_line(f"  {peer.name} does not answer as expected: {error!r}: NOT TIMED")
                return False
        self.results.append(result)
        verdict = "correct" if result.passed else "NOT TIMED"
        self.print_line(f"  {peer.name} scores within {result.worst:.1e} of the reference: {verdict}")
        return result.passed

    async def _measure(
        self, peer: Peer, servers: Sequence[ServerProcess], workload: Workload, round_: int
    ) -> None:
        """Measure; repeat if the machine was not steady. Every attempt is stored; reports use the last."""
        for _ in range(MAX_ATTEMPTS):
            measurement = await self.setup.measure(peer, servers, workload, round_)
            self.results.append(measurement)
            self.print_line(f"  {_format_measurement(measurement)}")
            if measurement.steady:
                break

    @contextmanager
    def _start_copies(self, server: PeerServer) -> Iterator[list[ServerProcess]]:
        """Start all copies of a server, one after the other."""
        self.print_line(f"starting {server.name}: {server.description}")
        checkpoint = self.setup.reference.checkpoint(server.depth, self.folder / "checkpoints")
        with ExitStack() as stack:
            yield [stack.enter_context(self._start_copy(server, checkpoint)) for _ in range(server.copies)]

    @contextmanager
    def _start_copy(self, server: PeerServer, checkpoint: Path) -> Iterator[ServerProcess]:
        python = venv_python(server, self.folder)
        context = LaunchContext(python, checkpoint, find_free_port(), machine.count_cores())
        command = server.build_command(context)
        log = self._log_file(server)
        log.parent.mkdir(parents=True, exist_ok=True)
        env = server_environment(command.env)
        with run_server_process(
            command.args, env, port=context.port, ready_path=server.ready_path, log=log
        ) as process:
            yield process

    def _log_file(self, server: PeerServer) -> Path:
        return self.folder / "logs" / f"{server.name}.log"

    def _print_failure(self, server: PeerServer, error: Exception) -> None:
        self.print_line(f"  {server.name}: {error}; see {self._log_file(server)}")


def venv_python(server: PeerServer, folder: Path) -> Path:
    """The Python of a server's venv, or this process's own."""
    return folder / server.venv / "bin" / "python" if server.venv else Path(sys.executable)


def server_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server: this process's without its thread settings, and the given variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(THREADING_PREFIXES)}
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **variables}


def _format_measurement(measurement: Measurement) -> str:
    note = "" if measurement.steady else "  (the machine was not steady)"
    others = measurement.shares["others"]
    return (
        f"{measurement.peer:<16} {measurement.workload:<18} {measurement.tokens_per_s:8.0f} tokens/s  "
        f"{dict(measurement.outcomes)}  peak {measurement.peaks[0]:.0f}/{measurement.peaks[1]:.0f} GFLOP/s, "
        f"others {others:.0%}{note}"
    )
