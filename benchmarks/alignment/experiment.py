"""Runs the arms: the same prompts, responses and labels in the first round; only the filter differs.

SparseRM runs first, because the random filter keeps as many pairs as SparseRM did.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from app.align import metrics, reward_hacking
from app.align.config import AlignmentConfig
from app.align.labelling import LabelledPair
from app.align.loop import AlignmentInputs, AlignmentLoop, MarginFunction
from app.align.policy.model import Policy
from app.evaluate.accuracy import Float64Array, accuracy_difference, bootstrap_mean, pair_accuracy
from app.types import Pair, Progress
from benchmarks.alignment.presets import Preset
from benchmarks.alignment.reward_models import RewardModels, make_margin_filter

SPARSE, NO_FILTER, RANDOM, DENSE, STANDARD = (
    "SparseRM", "no filter", "random filter", "DenseRM", "StandardRM",
)  # fmt: skip
ARMS = (SPARSE, NO_FILTER, RANDOM, DENSE, STANDARD)
# Files that no filter affects; they are copied from the SparseRM arm of the same seed.
SHARED_FILES = (
    "round-0/answers.jsonl", "round-0/measures.json", "round-1/candidates.jsonl", "round-1/pairs.jsonl",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AlignmentTask:
    """Training and test pairs with digests, and the criterion by which the policy labels its responses."""

    name: str
    train: list[Pair]
    test: list[Pair]
    digests: tuple[str, ...]
    criterion: str


class AlignmentExperiment:
    """Every arm with every seed, each in its own folder."""

    def __init__(
        self, task: AlignmentTask, preset: Preset, reward_models: RewardModels, start: Policy, folder: Path
    ) -> None:
        self.task, self.preset, self.reward_models = task, preset, reward_models
        self.start, self.folder = start, folder
        self.evaluation_set = metrics.build_evaluation_set(task.test, preset.compared, preset.answered)

    def run(self, progress: Progress) -> Row:
        """Run all arms that are not finished; return means, intervals and differences from no filter."""
        results: dict[str, list[Row]] = {arm: [] for arm in ARMS}
        for seed in range(self.preset.seeds):
            for arm in ARMS:
                results[arm].append(self._run_arm(arm, seed, progress))
        report = json.loads((self._arm_folder(SPARSE, 0) / "report.json").read_text())
        return {
            "pairs": len(self.evaluation_set.pairs),
            "questions": len(self.evaluation_set.questions),
            "answers": len(self.evaluation_set.prompts),
            "start": report["rounds"][0]["summary"],
            "arms": {
                arm: _summarise_arm(rows, results[NO_FILTER], self.evaluation_set)
                for arm, rows in results.items()
            },
            "reward models": self._reward_model_accuracies(),
        }

    def _run_arm(self, arm: str, seed: int, progress: Progress) -> Row:
        """Run one alignment loop; return the measures of its last round and the pairs kept in each round."""
        folder = self._arm_folder(arm, seed)
        _copy_shared_files(self._arm_folder(SPARSE, seed), folder)
        config, prefix = _make_config(self.task, self.preset, seed), f"{arm}, seed {seed}"
        loop = AlignmentLoop(
            config,
            self._make_inputs(arm, seed),
            folder,
            lambda stage, share: progress(f"{prefix}: {stage}", share),
        )
        report = loop.run({"arm": arm, "data": self.task.digests, **config.model_dump()})
        measures: Row = json.loads((folder / f"round-{config.rounds}" / "measures.json").read_text())
        return measures | {"pairs": [row["pairs"] for row in report["rounds"][1:]]}

    def _make_inputs(self, arm: str, seed: int) -> AlignmentInputs:
        models = self.reward_models
        reward_functions = {
            reward_hacking.REWARD: models.make_reward_function(lambda: models.sparse),
            reward_hacking.HELD_OUT: models.make_reward_function(lambda: models.gold),
        }
        prompts = list(dict.fromkeys(pair.messages for pair in models.other_pairs))
        margins = _make_filter(arm, models, self._arm_folder(SPARSE, seed), seed)
        return AlignmentInputs(
            self.start, prompts, [], self.evaluation_set, margins, reward_functions, lambda _: None
        )

    def _reward_model_accuracies(self) -> Row:
        """The accuracy of each reward model on the test pairs that policies are evaluated on."""
        models, test_pairs = self.reward_models, list(self.evaluation_set.pairs)
        margins_by_model = {
            SPARSE: models.score_margins(models.sparse, test_pairs),
            DENSE: models.score_margins(models.dense, test_pairs),
            STANDARD: models.score_standard_rm_margins(test_pairs),
            "gold": models.score_margins(models.gold, test_pairs),
        }
        groups = [pair.group for pair in test_pairs]
        return {
            name: _interval_row(pair_accuracy(margins, groups)) for name, margins in margins_by_model.items()
        }

    def _arm_folder(self, arm: str, seed: int) -> Path:
        return self.folder / f"seed-{seed}" / arm.replace(" ", "-").lower()


def _make_config(task: AlignmentTask, preset: Preset, seed: int) -> AlignmentConfig:
    return AlignmentConfig(
        prompts=task.name, test=task.name, model=SPARSE, held_out="gold", criterion=task.criterion,
        rounds=preset.rounds, per_round=preset.per_round, new_tokens=preset.new_tokens, epochs=preset.epochs,
        lr=preset.lr, batch=preset.batch, step=preset.step, answered=preset.answered,
        compared=preset.compared, watch=False, seed=seed,
    )  # fmt: skip


def _copy_shared_files(source: Path, target: Path) -> None:
    for name in SHARED_FILES:
        if source != target and (source / name).exists() and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            scratch = (target / name).with_suffix(".part")
            shutil.copyfile(source / name, scratch)
            scratch.replace(target / name)


def _make_filter(arm: str, models: RewardModels, sparse_folder: Path, seed: int) -> MarginFunction:
    """The filter of an arm: pairs with a negative margin are dropped."""

    def keep_all(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        return [0.0] * len(pairs)

    def keep_random(pairs: Sequence[LabelledPair], round_: int) -> list[float]:
        """Keep as large a share of the pairs as SparseRM kept in the same round."""
        sparse_margins = json.loads((sparse_folder / f"round-{round_}" / "margins.json").read_text())
        share = sum(margin >= 0 for margin in sparse_margins) / len(sparse_margins)
        kept = round(share * len(pairs))
        margins = [0.0] * kept + [-1.0] * (len(pairs) - kept)
        Random(seed * 1000 + round_).shuffle(margins)
        return margins

    return {
        SPARSE: make_margin_filter(lambda pairs: models.score_margins(models.sparse, pairs)),
        NO_FILTER: keep_all,
        RANDOM: keep_random,
        DENSE: make_margin_filter(lambda pairs: models.score_margins(models.dense, pairs)),
        STANDARD: make_margin_filter(models.score_standard_rm_margins),
    }[arm]


def _values_by_metric(measures: Row) -> dict[str, Float64Array]:
    """The values of each metric by test pair, question or prompt; metrics without values are left out."""
    agreement, answers = measures["agreement"], measures["answers"]
    values = {
        "implicit accuracy": (np.sign(agreement["implicit"]) + 1) / 2,
        "mc1": np.array(agreement["mc1"]), "mc2": np.array(agreement["mc2"]),
        **{
            name: np.array([answer[name] for answer in answers], float)
            for name in (reward_hacking.REWARD, reward_hacking.HELD_OUT, "tokens")
        },
    }  # fmt: skip
    return {name: array for name, array in values.items() if len(array)}


def _summarise_arm(rows: list[Row], unfiltered_rows: list[Row], evaluation_set: metrics.EvaluationSet) -> Row:
    """Means over seeds with intervals over prompts, the difference from no filter, and each seed's mean."""
    pair_groups = [pair.group for pair in evaluation_set.pairs]
    question_groups = [question.group for question in evaluation_set.questions]
    prompt_groups = [str(i) for i in range(len(evaluation_set.prompts))]
    groups_by_metric = {"implicit accuracy": pair_groups, "mc1": question_groups, "mc2": question_groups}
    values = [_values_by_metric(row) for row in rows]
    unfiltered_values = [_values_by_metric(row) for row in unfiltered_rows]
    summary: Row = {"kl": [row["summary"]["kl"] for row in rows], "pairs": [row["pairs"] for row in rows]}
    for metric in values[0]:
        groups = groups_by_metric.get(metric, prompt_groups)
        mean, unfiltered_mean = (
            np.mean([seed_values[metric] for seed_values in arm_values], axis=0)
            for arm_values in (values, unfiltered_values)
        )
        summary[metric] = {
            **_interval_row(bootstrap_mean(mean, groups)),
            "lead": _interval_row(accuracy_difference(mean, unfiltered_mean, groups)),
            "seeds": [float(seed_values[metric].mean()) for seed_values in values],
        }
    return summary


def _interval_row(interval: Any) -> Row:
    return {
        "mean": interval.accuracy,
        "ci_low": interval.ci_low,
        "ci_high": interval.ci_high,
        "n": interval.n,
    }
