"""What a peer is: how its server is started, what a request to it looks like, how its score is read.

A module here is pure: it opens nothing and starts nothing. What runs in a server's own venv lies in launch/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.workloads import Query

LOOPBACK = "127.0.0.1"
LAUNCH_PACKAGE = "benchmarks.peers.launch"


class Depth(StrEnum):
    """How much of the backbone a server runs: as many layers as SparseRM reads, or all of them."""

    CUT = "cut"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """Where a server is to run: its interpreter, its checkpoint, its port, and how many cores it may use."""

    python: Path
    checkpoint: Path
    port: int
    cores: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and what it needs in its environment."""

    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """What is posted, and where."""

    path: str
    body: Any


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A server process, or several of the same; `venv` is empty for this project's own.

    `start_s` is about how long a start takes, so that one can be told how long everything will.
    """

    name: str
    description: str
    build_command: Callable[[LaunchContext], Command]
    venv: str = ""
    ready_path: str = "/health"
    depth: Depth = Depth.CUT
    copies: int = 1
    expected_start_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to ask a server. Its scores have to be within `tolerance` of the reference, or it is not timed.

    The reference is the classifier, or the reward model named by `judge`. `counters` are series of its
    /metrics that show what was computed; `patience` is the header, if it knows one, by which callers say how
    long they wait; `only` are the workloads it is there for; `against` is whose figures its own divide.
    """

    name: str
    server: PeerServer
    build_requests: Callable[[Query], list[PeerRequest]]
    read_scores: Callable[[Any], list[float]]
    reward_model: str = ""
    tolerance: float = 1e-4
    counters: Mapping[str, str] = field(default_factory=dict)
    timeout_header: str = ""
    only_workloads: tuple[str, ...] = ()
    compared_with: str = "ours"
