"""What a peer is: how its server is started, what requests to it look like, and how its scores are read.

The modules of peers here are pure: they open no connection and start no process. Code that runs inside a
server's own venv is in launch/.
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
    """What a start command depends on: the venv's Python, the checkpoint, the port, the number of cores."""

    python: Path
    checkpoint: Path
    port: int
    cores: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and the environment variables it needs."""

    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """The path and JSON body of a POST request."""

    path: str
    body: Any


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A server process, or several copies of it; `venv` is empty for this project's own venv.

    `expected_start_s` is about how long a start takes; the expected duration of a run is computed from it.
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
    """One way to request scores from a server.

    It is timed only if its scores are within `tolerance` of the reference: the classifier, or the reward
    model named by `reward_model`. `counters` are metrics of the server that show what it computed.
    `timeout_header` is the header, if any, that tells the server how long the client waits. `only_workloads`
    are the workloads it runs by default (all if empty). Its speed is compared with the peer named by
    `compared_with`.
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
