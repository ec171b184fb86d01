"""Measures SparseRM and other servers on this machine in one run: python -m benchmarks.peers."""

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
from benchmarks import machine
from benchmarks.peers.catalogue import all_peers, select_peers
from benchmarks.peers.correctness_check import CorrectnessChecker
from benchmarks.peers.install import default_folder
from benchmarks.peers.measure import MeasurementSetup
from benchmarks.peers.peer import Peer
from benchmarks.peers.runner import ROOT, Runner, venv_python
from benchmarks.peers.schedule import ServerSession, Step, build_schedule, select_steps
from benchmarks.plots import save_plot
from benchmarks.reference import Reference, load_reference
from benchmarks.report import Results, render_markdown, render_summary, to_json
from benchmarks.results_log import ResultsLog, RunHeader
from benchmarks.workloads import TextGenerator, generate_probes, select_workloads

# Without --minutes, no measurement starts after so many times the expected duration.
DEADLINE_FACTOR = 2.0
MEASURED_PATHS = ("app", "models", "benchmarks")
REPORTED_SETTINGS = ("device", "dtype", "threads", "max_batch_tokens", "max_tokens")


def main() -> None:
    """Print the expected duration, run what is not measured yet, then print and write the results."""
    settings = Settings()
    args = _parse_arguments(settings)
    torch.set_num_threads(machine.count_cores())
    reference = load_reference(settings)
    setup = MeasurementSetup(reference, TextGenerator(reference.tokenizer), args.seconds, args.slo)
    try:
        steps, results = _select_steps(reference, args), _open_results(reference, settings, args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sessions = build_schedule(steps, args.rounds, results.has_steady)
    checker = CorrectnessChecker(reference, generate_probes(setup.generator, Random(time.time_ns())))
    deadline = time.monotonic() + 60 * _deadline_minutes(sessions, args.seconds, args.minutes)
    runner = Runner(setup, checker, results, args.folder, _print_line, deadline, args.together)
    is_complete = _run(runner, sessions)
    _write_results(Results(results), args.docs)
    missing = sum(len(session.steps) for session in build_schedule(steps, args.rounds, results.has_steady))
    if missing:
        _print_line(
            f"{missing} measurements are missing or were not steady; run the same command to continue"
        )
    if not is_complete:
        sys.exit(1)


def _select_steps(reference: Reference, args: argparse.Namespace) -> list[Step]:
    known = all_peers(list(reference.models), reference.score_head())
    peers = _installed_peers(select_peers(known, args.peers), args.folder)
    return select_steps(peers, select_workloads(args.workloads), workloads_named=bool(args.workloads))


def _open_results(reference: Reference, settings: Settings, args: argparse.Namespace) -> ResultsLog:
    if args.fresh:
        args.results.unlink(missing_ok=True)
    return ResultsLog(args.results, RunHeader(_run_facts(reference, settings, args)))


def _run(runner: Runner, sessions: Sequence[ServerSession]) -> bool:
    """Run the sessions; False if interrupted. On SIGTERM or Ctrl+C the servers are stopped first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(runner.run(sessions))
    except KeyboardInterrupt:
        return False


def _parse_arguments(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    folder = default_folder(settings)
    parser.add_argument(
        "--peers", nargs="+", default=[], help="peers by name; default: all that are installed"
    )
    parser.add_argument("--workloads", nargs="+", default=[], help="workloads by name or its first words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each load")
    parser.add_argument("--slo", type=float, default=2.0, help="latency objective in seconds")
    parser.add_argument("--together", action="store_true", help="start servers once and suspend them in turn")
    parser.add_argument("--minutes", type=float, help="start no measurement after so many minutes")
    parser.add_argument("--folder", type=Path, default=folder, help="folder of venvs, checkpoints and logs")
    parser.add_argument(
        "--results",
        type=Path,
        default=folder / "results.jsonl",
        help="results file; an existing one is continued",
    )
    parser.add_argument("--fresh", action="store_true", help="delete the results file first")
    parser.add_argument("--docs", type=Path, help="folder for peers.md, peers.json and peers.svg")
    return parser.parse_args()


def _installed_peers(peers: Sequence[Peer], folder: Path) -> list[Peer]:
    """The peers whose venv exists; prints how to install the others."""
    installed = [peer for peer in peers if venv_python(peer.server, folder).exists()]
    missing = sorted({peer.server.venv for peer in peers if peer not in installed})
    if missing:
        names = " ".join(missing)
        print(f"skipped, not installed: {names}; run python -m benchmarks.peers.install {names}")
    return installed


def _run_facts(reference: Reference, settings: Settings, args: argparse.Namespace) -> dict[str, str]:
    """Facts that must be equal for measurements to be comparable."""
    layers = ", ".join(f"{depth} {layers}" for depth, layers in reference.layers.items())
    return {
        **machine.describe_machine(),
        "code": _code_version(),
        "backbone": reference.folder.name,
        "layers": layers,
        "reward_models": ", ".join(reference.models),
        "settings": ", ".join(f"{name}={getattr(settings, name)}" for name in REPORTED_SETTINGS),
        "seconds": f"{args.seconds:g}",
        "slo_s": f"{args.slo:g}",
    }


def _code_version() -> str:
    """The last commit that changed the measured or the measuring code; documentation does not count."""
    commit = _git("log", "-1", "--format=%h", "--", *MEASURED_PATHS)
    is_dirty = _git("status", "--porcelain", "--", *MEASURED_PATHS)
    return (commit or "unknown") + ("-dirty" if is_dirty else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _deadline_minutes(sessions: Sequence[ServerSession], seconds: float, minutes: float | None) -> float:
    """Minutes after which no measurement starts: `minutes`, or twice the expected duration."""
    expected = sum(session.expected_seconds(seconds) for session in sessions) / 60
    count = sum(len(session.steps) for session in sessions)
    deadline = minutes or DEADLINE_FACTOR * expected
    _print_line(
        f"{count} measurements, {len(sessions)} server starts: about {expected:.0f} minutes on an idle "
        f"machine; no measurement starts after {deadline:.0f} minutes"
    )
    return deadline


def _write_results(results: Results, docs: Path | None) -> None:
    _print_line("\n" + "\n".join(render_summary(results)))
    if docs:
        (docs / "peers.md").write_text(render_markdown(results))
        (docs / "peers.json").write_text(json.dumps(to_json(results), indent=1) + "\n")
        save_plot(results, docs / "peers.svg")


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
