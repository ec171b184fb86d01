"""Runs the alignment experiment, or continues one: python -m benchmarks.alignment TRAIN TEST --task NAME."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.align.policy import model
from app.cli.common import DEFAULT_BACKBONE, DEFAULT_SAE, exit_on_error, show_progress
from app.data.pairs import read_pairs, source_sha256
from app.reward import loading
from app.settings import Settings
from app.train import jobs
from app.types import Progress
from benchmarks.alignment.best_of_n import run_best_of_n
from benchmarks.alignment.experiment import AlignmentExperiment, AlignmentTask
from benchmarks.alignment.presets import PRESETS, Preset, override_preset
from benchmarks.alignment.reward_models import RewardModels
from benchmarks.alignment.tables import render_section, write_section

MAX_TOKENS = 512


def main() -> None:
    """Run the experiment, write its report, and print it as Markdown."""
    args = _parse_arguments()
    folder = args.folder / args.task
    with exit_on_error(), show_progress() as progress:
        preset = override_preset(PRESETS[args.preset], args.set)
        files = (args.train, args.test)
        train, test = (read_pairs(file) for file in files)
        task = AlignmentTask(args.task, train, test, tuple(map(source_sha256, files)), args.criterion)
        report = run(task, preset, args.sae, args.policy, folder, Settings(), progress)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        if args.docs:
            write_section(args.docs, report)
    print("\n".join(render_section(report)))


def run(
    task: AlignmentTask,
    preset: Preset,
    sae: Path,
    policy_name: str,
    folder: Path,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Run the arms and the best-of-n curve; `seconds` counts this call only, not earlier ones."""
    started = time.perf_counter()
    extractor = jobs.load_feature_extractor(sae, settings, progress)
    llm = loading.fetch_full_backbone(policy_name, settings, progress)
    models = RewardModels(task.train, preset, extractor, llm, settings.cache, progress)
    policy = model.load_policy(policy_name, settings, MAX_TOKENS, progress)
    arms = AlignmentExperiment(task, preset, models, policy, folder).run(progress)
    prompts = list(dict.fromkeys(pair.messages for pair in task.test))[: preset.pool_prompts]
    curve = run_best_of_n(prompts, preset, models, policy, folder / "best-of-n", progress)
    return {
        "task": task.name, "data": task.digests, "preset": asdict(preset), "study": arms, "best of n": curve,
        "seconds": round(time.perf_counter() - started),
    }  # fmt: skip


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__)
    parser.add_argument("train", help="pairs that train the reward models and give the prompts")
    parser.add_argument("test", help="pairs with other prompts, for evaluation")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument(
        "--criterion", default="better", help="adjective in the labelling prompt: which answer is more ..."
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a field of the preset"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/alignment"))
    parser.add_argument("--docs", type=Path, help="page in which the task's section is replaced")
    parser.add_argument("--sae", type=Path, default=DEFAULT_SAE)
    parser.add_argument("--policy", default=DEFAULT_BACKBONE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
