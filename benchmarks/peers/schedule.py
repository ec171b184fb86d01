"""Which server runs when: in every round each server is measured once, and each round starts with another.

Servers are started anew in every round. With `--together` they are started once and suspended while it is not
their turn; the measurements of one workload then follow each other within a minute, in which the speed of a
shared machine changes less.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.peers.measure import OPEN_LOOP_FRACTIONS
from benchmarks.peers.peer import Peer, PeerServer
from benchmarks.workloads import Workload

# Seconds around each measurement: warm-up, peak measurements, generating texts.
OVERHEAD_S = 12.0
Step = tuple[Peer, Workload]


@dataclass(frozen=True, slots=True)
class ServerSession:
    """One server from its start to its stop, and the measurements made meanwhile."""

    round: int
    server: PeerServer
    steps: tuple[Step, ...]

    def expected_seconds(self, seconds_per_load: float) -> float:
        """About how long the session takes when each load lasts so many seconds."""
        loads = sum(1 + len(OPEN_LOOP_FRACTIONS) * workload.open_loop for _, workload in self.steps)
        return (
            self.server.copies * self.server.expected_start_s
            + len(self.steps) * OVERHEAD_S
            + loads * seconds_per_load
        )


def build_schedule(
    steps: Iterable[Step], rounds: int, is_done: Callable[[str, str, int], bool]
) -> list[ServerSession]:
    """The sessions that are left to run.

    Open loops come last in a session: they can leave a server with requests that no client waits for.
    """
    steps_by_server: dict[str, list[Step]] = {}
    for peer, workload in sorted(steps, key=lambda step: step[1].open_loop):
        steps_by_server.setdefault(peer.server.name, []).append((peer, workload))
    sessions = []
    for round_ in range(rounds):
        names = list(steps_by_server)
        first = round_ % max(len(names), 1)
        for name in names[first:] + names[:first]:
            remaining = [
                (peer, workload)
                for peer, workload in steps_by_server[name]
                if not is_done(peer.name, workload.name, round_)
            ]
            if remaining:
                sessions.append(ServerSession(round_, remaining[0][0].server, tuple(remaining)))
    return sessions


def select_steps(
    peers: Sequence[Peer], workloads: Sequence[Workload], *, workloads_named: bool
) -> list[Step]:
    """Every peer under every workload; unless the user named workloads, only the default combinations."""
    return [
        (peer, workload)
        for peer in peers
        for workload in workloads
        if workloads_named or _is_default_combination(peer, workload)
    ]


def _is_default_combination(peer: Peer, workload: Workload) -> bool:
    return (not workload.only_peers or peer.name in workload.only_peers) and (
        not peer.only_workloads or workload.name in peer.only_workloads
    )


def interleave_by_workload(sessions: Sequence[ServerSession]) -> list[tuple[ServerSession, Peer, Workload]]:
    """All steps ordered by round, then by workload, then by the order of servers in the round."""
    workloads = dict.fromkeys(workload for session in sessions for _, workload in session.steps)
    return [
        (session, peer, workload)
        for round_ in sorted({session.round for session in sessions})
        for current in workloads
        for session in sessions
        for peer, workload in session.steps
        if (session.round, workload) == (round_, current)
    ]
