"""python -m benchmarks.peers: SparseRM beside other servers on this machine, in one run."""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from app.settings import Settings
from benchmarks import machine, workloads
from benchmarks.peers import catalogue
from benchmarks.peers.correctness_check import Gatekeeper
from benchmarks.peers.install import folder
from benchmarks.peers.measure import Bench
from benchmarks.peers.peer import Peer
from benchmarks.peers.schedule import ROOT, Runner, Step, Stint, course, interpreter, wanted
from benchmarks.plots import draw
from benchmarks.reference import Reference, load_reference
from benchmarks.report import Results, as_json, markdown, summary
from benchmarks.results_log import ResultsLog, RunHeader
from benchmarks.workloads import TextGenerator, generate_probes

MARGIN = 2.0
MEASURED = ("app", "models", "benchmarks")
SETTINGS = ("device", "dtype", "threads", "max_batch_tokens", "max_tokens")


def main() -> None:
    """Say how long it will take, measure what is not measured yet, print and write what was found."""
    settings = Settings()
    chosen = _arguments(settings)
    torch.set_num_threads(machine.count_cores())
    ground = load_reference(settings)
    bench = Bench(ground, TextGenerator(ground.text), chosen.seconds, chosen.slo)
    try:
        steps, journal = _steps(ground, chosen), _journal(ground, settings, chosen)
    except ValueError as error:
        sys.exit(f"error: {error}")
    stints = course(steps, chosen.rounds, journal.has_steady)
    gatekeeper = Gatekeeper(ground, generate_probes(bench.words, Random(time.time_ns())))
    until = time.monotonic() + 60 * _minutes(stints, chosen.seconds, chosen.minutes)
    runner = Runner(bench, gatekeeper, journal, chosen.folder, _say, until, chosen.together)
    whole = _run(runner, stints)
    _tell(Results(journal), chosen.docs)
    if left := sum(len(stint.steps) for stint in course(steps, chosen.rounds, journal.has_steady)):
        _say(f"{left} measurements are missing or were not steady; the same command goes on with them")
    if not whole:
        sys.exit(1)


def _steps(ground: Reference, chosen: argparse.Namespace) -> list[Step]:
    known = catalogue.all_peers(list(ground.models), ground.score_head())
    peers = _installed(catalogue.select_peers(known, chosen.peers), chosen.folder)
    return wanted(peers, workloads.select_workloads(chosen.workloads), named=bool(chosen.workloads))


def _journal(ground: Reference, settings: Settings, chosen: argparse.Namespace) -> ResultsLog:
    if chosen.fresh:
        chosen.results.unlink(missing_ok=True)
    return ResultsLog(chosen.results, RunHeader(_facts(ground, settings, chosen)))


def _run(runner: Runner, stints: Sequence[Stint]) -> bool:
    """Whether it came to its end; when asked to stop, it ends its servers first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(runner.run(stints))
    except KeyboardInterrupt:
        return False


def _arguments(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    home = folder(settings)
    parser.add_argument("--peers", nargs="+", default=[], help="which; all that are installed")
    parser.add_argument("--workloads", nargs="+", default=[], help="which, by name or by its first words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long a measurement asks")
    parser.add_argument("--slo", type=float, default=2.0, help="seconds a good answer takes at most")
    parser.add_argument("--together", action="store_true", help="start servers once; stop those not asked")
    parser.add_argument("--minutes", type=float, help="nothing new begins after that")
    parser.add_argument("--folder", type=Path, default=home, help="venvs, checkpoints and logs")
    parser.add_argument("--results", type=Path, default=home / "results.jsonl", help="gone on with")
    parser.add_argument("--fresh", action="store_true", help="forget what the results hold")
    parser.add_argument("--docs", type=Path, help="where to write peers.md, peers.json and peers.svg")
    return parser.parse_args()


def _installed(peers: Sequence[Peer], place: Path) -> list[Peer]:
    """Those whose venv is there; the others are named."""
    there = [peer for peer in peers if interpreter(peer.server, place).exists()]
    missing = sorted({peer.server.venv for peer in peers if peer not in there})
    if missing:
        print(f"left out: {' '.join(missing)}; python -m benchmarks.peers.install {' '.join(missing)}")
    return there


def _facts(ground: Reference, settings: Settings, chosen: argparse.Namespace) -> dict[str, str]:
    """What must be the same for figures to stand beside each other."""
    layers = ", ".join(f"{depth} {layers}" for depth, layers in ground.layers.items())
    return {
        **machine.describe_machine(),
        "code": _code(),
        "backbone": ground.folder.name,
        "layers": layers,
        "reward_models": ", ".join(ground.models),
        "settings": ", ".join(f"{name}={getattr(settings, name)}" for name in SETTINGS),
        "seconds": f"{chosen.seconds:g}",
        "slo_s": f"{chosen.slo:g}",
    }


def _code() -> str:
    """The last change of what is measured or measures; writing about it changes nothing."""
    commit = _git("log", "-1", "--format=%h", "--", *MEASURED)
    return (commit or "unknown") + ("-dirty" if _git("status", "--porcelain", "--", *MEASURED) else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _minutes(stints: Sequence[Stint], seconds: float, most: float | None) -> float:
    """After how many nothing new begins; twice what is expected, unless somebody said."""
    expected = sum(stint.seconds(seconds) for stint in stints) / 60
    count = sum(len(stint.steps) for stint in stints)
    bound = most or MARGIN * expected
    _say(
        f"{count} measurements, {len(stints)} starts: about {expected:.0f} minutes on a quiet machine; "
        f"nothing new begins after {bound:.0f}"
    )
    return bound


def _tell(results: Results, docs: Path | None) -> None:
    _say("\n" + "\n".join(summary(results)))
    if docs:
        (docs / "peers.md").write_text(markdown(results))
        (docs / "peers.json").write_text(json.dumps(as_json(results), indent=1) + "\n")
        draw(results, docs / "peers.svg")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
