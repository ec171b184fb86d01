"""What was measured, line by line in a file: a run that was cut short goes on where it stood.

The first line says on what machine, with what code and by which plan; another one's lines are never mixed in.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What figures depend on."""

    facts: Mapping[str, str]
    kind: Literal["header"] = "header"


@dataclass(frozen=True, slots=True)
class ServerStart:
    """A server was started: seconds until it was ready, and the memory it held once it had answered."""

    server: str
    round: int
    ready_s: float
    resident_mib: float
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class BareForward:
    """What one pair of 256 tokens takes in transformers itself, cut, while no server runs."""

    round: int
    seconds: float
    kind: Literal["bare"] = "bare"


@dataclass(frozen=True, slots=True)
class CorrectnessResult:
    """How far a peer's scores are from the reference."""

    peer: str
    round: int
    worst: float
    tolerance: float
    kind: Literal["gate"] = "gate"

    @property
    def passed(self) -> bool:
        """Whether it may be timed."""
        return self.worst <= self.tolerance


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """Requests at random moments at one rate."""

    rate: float
    share_in_time: float
    outcomes: Mapping[str, int]
    quantiles: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One peer under one workload in one round."""

    peer: str
    compared_with: str
    workload: str
    round: int
    seed: int
    at: str
    load_average: float
    peaks: tuple[float, float]
    steady: bool
    seconds: float
    outcomes: Mapping[str, int]
    pairs: int
    tokens: int
    gflops: float | None
    latencies: tuple[float, ...]
    cores: int
    shares: Mapping[str, float]
    resident_mib: tuple[float, float]
    counters: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[LoadPoint, ...] = ()
    kind: Literal["block"] = "block"

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answered pairs a second, whether computed or shared."""
        return self.tokens / self.seconds

    @property
    def cpu_s_per_1000_tokens(self) -> float | None:
        """Seconds of a core the server used for a thousand tokens."""
        return 1000 * self.shares["server"] * self.cores * self.seconds / self.tokens if self.tokens else None

    @property
    def share_of_peak(self) -> float | None:
        """Useful operations a second as a share of what matrix products reached meanwhile."""
        return None if self.gflops is None else self.gflops / self.seconds / (sum(self.peaks) / 2)


Entry = RunHeader | ServerStart | BareForward | CorrectnessResult | Measurement
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class ResultsLog:
    """The entries of one run, in memory and on disk."""

    def __init__(self, file: Path, header: RunHeader) -> None:
        self._file = file
        self.header = header
        self.entries = [ENTRY.validate_json(line) for line in _complete_lines(file)]
        if not self.entries:
            self.append(header)
        elif self.entries[0] != header:
            raise ValueError(f"{file} holds a run of another machine, code or plan; use --fresh or --results")

    def append(self, entry: Entry) -> None:
        """Keep an entry; it is on disk when this returns."""
        self.entries.append(entry)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as out:
            out.write(ENTRY.dump_json(entry) + b"\n")
            out.flush()
            os.fsync(out.fileno())

    @property
    def measurements(self) -> list[Measurement]:
        """What was measured."""
        return [one for one in self.entries if isinstance(one, Measurement)]

    def has_steady(self, peer: str, workload: str, round_: int) -> bool:
        """Whether this was measured while the machine was steady."""
        return any(
            (one.peer, one.workload, one.round) == (peer, workload, round_) and one.steady
            for one in self.measurements
        )


def _complete_lines(file: Path) -> list[bytes]:
    """Lines of a file; the end of one that was cut short is taken off the file, too."""
    if not file.exists():
        return []
    whole, _, rest = file.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(file, file.stat().st_size - len(rest))
    return whole.splitlines()
