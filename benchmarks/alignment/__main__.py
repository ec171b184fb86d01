"""`python -m benchmarks.alignment TRAIN TEST --task NAME`: the experiment; goes on where it was killed."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.align.policy import model
from app.backbone.model_sources import Progress
from app.cli.common import DEFAULT_BACKBONE, DEFAULT_SAE, exit_on_error, show_progress
from app.data.pairs import read_pairs, source_sha256
from app.reward import loading
from app.settings import Settings
from app.train import jobs
from benchmarks.alignment import best_of_n, tables
from benchmarks.alignment.experiment import Study, Task
from benchmarks.alignment.presets import PRESETS, Preset, changed
from benchmarks.alignment.reward_models import Jury

MAX_TOKENS = 512


def main() -> None:
    given = _arguments()
    with exit_on_error(), show_progress() as report:
        preset = changed(PRESETS[given.preset], given.set)
        files = (given.train, given.test)
        train, test = (read_pairs(one) for one in files)
        task = Task(given.task, train, test, tuple(map(source_sha256, files)), given.criterion)
        found = run(task, preset, given.sae, given.policy, given.folder / given.task, Settings(), report)
        (given.folder / given.task / "report.json").write_text(json.dumps(found, indent=1) + "\n")
        if given.docs:
            tables.write(given.docs, found)
    print("\n".join(tables.section(found)))


def run(
    task: Task,
    preset: Preset,
    sae: Path,
    start: str,
    folder: Path,
    settings: Settings,
    report: Progress,
) -> dict[str, Any]:
    """The arms and the curve; seconds are of this call alone."""
    began = time.perf_counter()
    reader = jobs.load_feature_extractor(sae, settings, report)
    jury = Jury(
        task.train,
        preset,
        reader,
        loading.fetch_full_backbone(start, settings, report),
        settings.cache,
        report,
    )
    begun = model.load_policy(start, settings, MAX_TOKENS, report)
    arms = Study(task, preset, jury, begun, folder).run(report)
    prompts = list(dict.fromkeys(pair.messages for pair in task.test))[: preset.pool_prompts]
    curve = best_of_n.run(prompts, preset, jury, begun, folder / "best-of-n", report)
    return {
        "task": task.name, "data": task.digests, "preset": asdict(preset), "study": arms, "best of n": curve,
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__)
    parser.add_argument("train", help="pairs to train reward models on, and prompts to align on")
    parser.add_argument("test", help="pairs of other prompts to measure on")
    parser.add_argument("--task", required=True, help="what to call it")
    parser.add_argument(
        "--criterion", default="better", help="which answer is more ...: the policy judges by it"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another size")
    parser.add_argument("--folder", type=Path, default=Path("build/alignment"))
    parser.add_argument("--docs", type=Path, help="page whose section of this task is rewritten")
    parser.add_argument("--sae", type=Path, default=DEFAULT_SAE)
    parser.add_argument("--policy", default=DEFAULT_BACKBONE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
