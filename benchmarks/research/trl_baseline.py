"""`python -m benchmarks.research.trl_baseline MODEL PAIRS`: times TRL's RewardTrainer as it ships.

TRL pads, and computes the prompt once for each response. The StandardRM of `compare_standard_rm` does
neither. Both ways are timed on the same few pairs, alternately. One pair is a batch, so that TRL pads as
little as it can.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from app.align.policy import trl_trainers
from app.backbone.tokenization import ChatTokenizer
from app.cli import common
from app.data.pairs import read_pairs
from app.evaluate import report as reports
from app.reward import bundle, loading
from app.settings import Settings
from app.types import Pair, Progress
from benchmarks.research import options, standard_rm

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: options.ModelArgument,
    pairs: options.PairsArgument,
    count: Annotated[int, typer.Option("--count", min=2, help="How many of them, drawn at random.")] = 32,
    bad: options.BadRowOption = common.BadRowPolicy.STOP,
) -> None:
    """Time TRL's RewardTrainer as it ships beside the StandardRM, and add the result to the report."""
    settings = common.load_settings()
    with common.exit_on_error(), common.show_progress() as progress:
        time_and_report(model, read_pairs(pairs, bad.error_handler), count, settings, progress)
    common.console.print(f"added to {settings.models_dir / model / 'report.md'}", highlight=False)


def time_and_report(
    name: str, pairs: list[Pair], count: int, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Time both ways on some of the pairs; the result is added to the report of a bundle and returned."""
    folder = settings.models_dir / name
    card = bundle.load_bundle(folder).card
    llm = loading.fetch_full_backbone(card.backbone, settings, progress)
    matched = standard_rm.match_settings(settings)
    _, tokenizer = loading.load_backbone(card.backbone, card.layer, matched, progress)
    result = time_trl(llm, tokenizer, pairs, count, standard_rm.StandardRMConfig(), progress)
    reports.update(folder, card, {"stock": result})
    return result


def time_trl(
    backbone: Path,
    tokenizer: ChatTokenizer,
    pairs: Sequence[Pair],
    count: int,
    config: standard_rm.StandardRMConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Return the CPU seconds of an epoch on some of the pairs, as TRL ships ("stock") and in one row each."""
    sample = random.Random(config.seed).sample(pairs, min(count, len(pairs)))  # not used for security
    cpu_seconds = {"stock": 0.0, "siblings": 0.0}
    for turn, part in enumerate((sample[::2], sample[1::2])):
        for done, variant in enumerate(sorted(cpu_seconds, reverse=bool(turn))):
            progress("both ways, alternately", (2 * turn + done) / 4)
            unmodified = variant == "stock"
            cpu_seconds[variant] += _time_epoch(backbone, tokenizer, part, config, unmodified=unmodified)
    progress("both ways, alternately", 1.0)
    costs = {variant: round(seconds, 1) for variant, seconds in cpu_seconds.items()}
    return {"pairs": len(sample), "threads": torch.get_num_threads(), "cpu_seconds": costs}


def _time_epoch(
    backbone: Path,
    tokenizer: ChatTokenizer,
    pairs: list[Pair],
    config: standard_rm.StandardRMConfig,
    *,
    unmodified: bool,
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        one_epoch = replace(config, epochs=1)
        trainer = standard_rm.build_trainer(
            backbone, tokenizer, pairs, one_epoch, Path(folder), unmodified=unmodified
        )
        trl_trainers.add_callbacks(trainer, lambda _: None)
        _, before = standard_rm.read_clocks()
        trl_trainers.train_or_resume(trainer, Path(folder))
        return standard_rm.read_clocks()[1] - before


if __name__ == "__main__":
    app()
