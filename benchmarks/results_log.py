"""The results file of a benchmark run: one JSON entry a line, so that an interrupted run can continue.

The first line describes the machine, the code and the settings; a file with another description is refused,
so results of different machines or versions are never mixed. The JSON keys are a stable format
(docs/peers.json).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, slots=True)
class RunHeader:
    """Facts that the measured values depend on: machine, code version, settings."""

    facts: Mapping[str, str]
    kind: Literal["header"] = "header"


@dataclass(frozen=True, slots=True)
class ServerStart:
    """One start of a server: seconds until it was ready, and its memory after the first answers."""

    server: str
    round: int
    ready_s: float
    resident_mib: float
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class BareForward:
    """Seconds of transformers alone, cut at the same layer, for one item of 256 tokens."""

    round: int
    seconds: float
    kind: Literal["bare"] = "bare"


@dataclass(frozen=True, slots=True)
class CorrectnessResult:
    """The largest difference between a peer's scores and the reference."""

    peer: str
    round: int
    worst: float
    tolerance: float
    kind: Literal["gate"] = "gate"

    @property
    def passed(self) -> bool:
        """Whether the peer's scores are correct, so that it may be timed."""
        return self.worst <= self.tolerance


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """The result of an open loop at one request rate."""

    rate: float
    share_in_time: float
    outcomes: Annotated[Mapping[str, int], Field(alias="fates")]
    quantiles: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One peer under one workload in one round."""

    peer: str
    compared_with: Annotated[str, Field(alias="against")]
    workload: str
    round: int
    seed: int
    at: str
    load_average: float
    peaks: tuple[float, float]
    steady: bool
    seconds: float
    outcomes: Annotated[Mapping[str, int], Field(alias="fates")]
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
        """Tokens of scored items per second, including tokens that were not computed because of sharing."""
        return self.tokens / self.seconds

    @property
    def cpu_s_per_1000_tokens(self) -> float | None:
        """Core-seconds that the server used per 1,000 tokens."""
        return 1000 * self.shares["server"] * self.cores * self.seconds / self.tokens if self.tokens else None

    @property
    def share_of_peak(self) -> float | None:
        """Useful FLOP/s as a share of the matrix-product peak measured before and after."""
        return None if self.gflops is None else self.gflops / self.seconds / (sum(self.peaks) / 2)


Entry = RunHeader | ServerStart | BareForward | CorrectnessResult | Measurement
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class ResultsLog:
    """The entries of one run, in memory and in its file."""

    def __init__(self, file: Path, header: RunHeader) -> None:
        self._file = file
        self.header = header
        self.entries = [ENTRY.validate_json(line) for line in _complete_lines(file)]
        if not self.entries:
            self.append(header)
        elif self.entries[0] != header:
            raise ValueError(
                f"{file} holds results of another machine, code version or settings; "
                "use --fresh to overwrite it or --results to write another file"
            )

    def append(self, entry: Entry) -> None:
        """Add an entry; it is flushed to disk when this returns."""
        self.entries.append(entry)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as out:
            out.write(ENTRY.dump_json(entry, by_alias=True) + b"\n")
            out.flush()
            os.fsync(out.fileno())

    @property
    def measurements(self) -> list[Measurement]:
        """All measurements, in the order they were made."""
        return [entry for entry in self.entries if isinstance(entry, Measurement)]

    def has_steady(self, peer: str, workload: str, round_: int) -> bool:
        """Whether there is a measurement of this combination made while the machine was steady."""
        key = (peer, workload, round_)
        return any(
            (measurement.peer, measurement.workload, measurement.round) == key and measurement.steady
            for measurement in self.measurements
        )


def _complete_lines(file: Path) -> list[bytes]:
    """The complete lines of a file; an incomplete last line is also removed from the file."""
    if not file.exists():
        return []
    complete, _, incomplete = file.read_bytes().rpartition(b"\n")
    if incomplete:
        os.truncate(file, file.stat().st_size - len(incomplete))
    return complete.splitlines()
