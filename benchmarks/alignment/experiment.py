"""The arms: the same prompts, responses and labels in the first round; only the filter differs.

SparseRM comes first, because the random filter keeps as many pairs as it did.
"""

import json
import shutil
from collections.abc import Callable, Sequence
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
from app.types import Pair
from benchmarks.alignment.presets import Preset
from benchmarks.alignment.reward_models import Jury, sieve

OURS, NONE, CHANCE, DENSE, STANDARD = "SparseRM", "no filter", "random filter", "DenseRM", "StandardRM"
ARMS = (OURS, NONE, CHANCE, DENSE, STANDARD)
SHARED = ("round-0/answers.jsonl", "round-0/measures.json", "round-1/candidates.jsonl", "round-1/pairs.jsonl")
Row = dict[str, Any]
Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked: training and test pairs with their digests, and by what the policy judges itself."""

    name: str
    train: list[Pair]
    test: list[Pair]
    digests: tuple[str, ...]
    criterion: str


class Study:
    """Every arm with every seed, in folders of their own."""

    def __init__(self, task: Task, preset: Preset, jury: Jury, start: Policy, folder: Path) -> None:
        self.task, self.preset, self.jury = task, preset, jury
        self.start, self.folder = start, folder
        self.exam = metrics.build_evaluation_set(task.test, preset.compared, preset.answered)

    def run(self, report: Report) -> Row:
        """All arms, or those that are left; means, intervals and leads."""
        seeds = range(self.preset.seeds)
        done = [(seed, arm, self._arm(arm, seed, report)) for seed in seeds for arm in ARMS]
        found = {arm: [row for _, other, row in done if other == arm] for arm in ARMS}
        start = json.loads((self._home(OURS, 0) / "report.json").read_text())["rounds"][0]["summary"]
        return {
            "pairs": len(self.exam.pairs),
            "questions": len(self.exam.questions),
            "answers": len(self.exam.prompts),
            "start": start,
            "arms": {arm: _compared(rows, found[NONE], self.exam) for arm, rows in found.items()},
            "reward models": self._reward_models(),
        }

    def _arm(self, arm: str, seed: int, report: Report) -> Row:
        """One loop, and what its last round was found to be."""
        home = self._home(arm, seed)
        _share(self._home(OURS, seed), home)
        plan, where = _plan(self.task, self.preset, seed), f"{arm}, seed {seed}"
        loop = AlignmentLoop(
            plan, self._parts(arm, seed), home, lambda stage, n: report(f"{where}: {stage}", n)
        )
        told = loop.run({"arm": arm, "data": self.task.digests, **plan.model_dump()})
        last: Row = json.loads((home / f"round-{plan.rounds}" / "measures.json").read_text())
        return last | {"pairs": [row["pairs"] for row in told["rounds"][1:]]}

    def _parts(self, arm: str, seed: int) -> AlignmentInputs:
        jury = self.jury
        scorers = {
            reward_hacking.REWARD: jury.scorer(lambda: jury.sparse),
            reward_hacking.HELD_OUT: jury.scorer(lambda: jury.gold),
        }
        prompts = list(dict.fromkeys(pair.messages for pair in jury.others))
        sieves = _sieve(arm, jury, self._home(OURS, seed), seed)
        return AlignmentInputs(self.start, prompts, [], self.exam, sieves, scorers, lambda _: None)

    def _reward_models(self) -> Row:
        """How often each agrees with people on the test pairs that policies are examined on."""
        jury, test = self.jury, list(self.exam.pairs)
        margins = {
            OURS: jury.margins(jury.sparse, test),
            DENSE: jury.margins(jury.dense, test),
            STANDARD: jury.standard(test),
            "gold": jury.margins(jury.gold, test),
        }
        groups = [pair.group for pair in test]
        return {name: _said(pair_accuracy(found, groups)) for name, found in margins.items()}

    def _home(self, arm: str, seed: int) -> Path:
        return self.folder / f"seed-{seed}" / arm.replace(" ", "-").lower()


def _plan(task: Task, preset: Preset, seed: int) -> AlignmentConfig:
    return AlignmentConfig(
        prompts=task.name, test=task.name, model=OURS, held_out="gold", criterion=task.criterion,
        rounds=preset.rounds, per_round=preset.per_round, new_tokens=preset.new_tokens, epochs=preset.epochs,
        lr=preset.lr, batch=preset.batch, step=preset.step, answered=preset.answered,
        compared=preset.compared, watch=False, seed=seed,
    )  # fmt: skip


def _share(first: Path, here: Path) -> None:
    """What no filter has touched yet is the same in every arm."""
    for name in SHARED:
        if first != here and (first / name).exists() and not (here / name).exists():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            scratch = (here / name).with_suffix(".part")
            shutil.copyfile(first / name, scratch)
            scratch.replace(here / name)


def _sieve(arm: str, jury: Jury, ours: Path, seed: int) -> MarginFunction:
    def everything(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        return [0.0] * len(pairs)

    def chance(pairs: Sequence[LabelledPair], number: int) -> list[float]:
        margins = json.loads((ours / f"round-{number}" / "margins.json").read_text())
        share = sum(margin >= 0 for margin in margins) / len(margins)
        kept = [0.0] * round(share * len(pairs))
        drawn = kept + [-1.0] * (len(pairs) - len(kept))
        Random(seed * 1000 + number).shuffle(drawn)
        return drawn

    return {
        OURS: sieve(lambda pairs: jury.margins(jury.sparse, pairs)),
        NONE: everything,
        CHANCE: chance,
        DENSE: sieve(lambda pairs: jury.margins(jury.dense, pairs)),
        STANDARD: sieve(jury.standard),
    }[arm]


def _items(row: Row) -> dict[str, Float64Array]:
    """What is compared between arms, item by item."""
    agreed, answers = row["agreement"], row["answers"]
    found = {
        "implicit accuracy": (np.sign(agreed["implicit"]) + 1) / 2,
        "mc1": np.array(agreed["mc1"]), "mc2": np.array(agreed["mc2"]),
        **{
            n: np.array([one[n] for one in answers], float)
            for n in (reward_hacking.REWARD, reward_hacking.HELD_OUT, "tokens")
        },
    }  # fmt: skip
    return {name: values for name, values in found.items() if len(values)}


def _compared(rows: list[Row], without: list[Row], exam: metrics.EvaluationSet) -> Row:
    """Means over seeds with intervals over prompts, leads over no filter, and each seed's own mean."""
    pairs, choices = [pair.group for pair in exam.pairs], [choice.group for choice in exam.questions]
    numbers = [str(at) for at in range(len(exam.prompts))]
    ours, theirs = ([_items(row) for row in some] for some in (rows, without))
    found: Row = {"kl": [row["summary"]["kl"] for row in rows], "pairs": [row["pairs"] for row in rows]}
    for name in ours[0]:
        groups = {"implicit accuracy": pairs, "mc1": choices, "mc2": choices}.get(name, numbers)
        mean, base = (np.mean([one[name] for one in some], axis=0) for some in (ours, theirs))
        found[name] = {
            **_said(bootstrap_mean(mean, groups)), "lead": _said(accuracy_difference(mean, base, groups)),
            "seeds": [float(one[name].mean()) for one in ours],
        }  # fmt: skip
    return found


def _said(found: Any) -> Row:
    return {"mean": found.accuracy, "ci_low": found.ci_low, "ci_high": found.ci_high, "n": found.n}
