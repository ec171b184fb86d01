"""Online alignment: draw → label → filter → DPO → measure, round by round, until it is done or goes wrong.

Every product of a round is kept in the run's folder, and what is there is not made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from app.align import labelling, metrics, reward_hacking
from app.align import report as chronicle
from app.align.artifacts import JsonRow, RunArtifacts
from app.align.config import AlignmentConfig
from app.align.labelling import LabelledPair
from app.align.metrics import Exam
from app.align.policy import dpo
from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Completion, Conversation, Policy, SamplingConfig, sample_completions
from app.align.reward_scoring import Scorer
from app.data.pairs import hash_to_unit_interval
from app.errors import DataError
from app.types import Item, Pair

Report = Callable[[str, float], None]
Sieve = Callable[[Sequence[LabelledPair], int], list[float]]
Refresh = Callable[[int], None]
EVALUATION_SEED_OFFSET = 7919


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run works with: where it starts, its data, and whoever says what is good.

    `sieve` gives each pair of a round the margin by which it agrees; `scorers` measure, by the names of
    `vigil`; `refresh` is told of every round that ends.
    """

    start: Policy
    prompts: Sequence[Conversation]
    pairs: Sequence[Pair]
    exam: Exam
    sieve: Sieve
    scorers: dict[str, Scorer]
    refresh: Refresh


def filtering(scored: Scorer) -> Sieve:
    """The margin of the preferred response in a reward: the paper's filter."""

    def sieve(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        rewards = [one.reward for one in scored([side for pair in pairs for side in pair.items])]
        return [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]

    return sieve


class Loop:
    """One run in its folder."""

    def __init__(self, plan: AlignmentConfig, parts: Parts, folder: Path, report: Report) -> None:
        self.plan, self.parts = plan, parts
        self.stages = RunArtifacts(folder)
        self._report = report

    def run(self, facts: JsonRow) -> JsonRow:
        """All rounds, or those that are left; what was found is in report.json and returned."""
        self.stages.record_config(facts)
        policy = self.parts.start
        rounds = [self._measured(policy, 0)]
        for number in range(1, self.plan.rounds + 1):
            policy = self._round(policy, number)
            rounds.append(self._measured(policy, number) | {"pairs": self._counts(number)})
            rounds[-1]["alarms"] = self._alarms(rounds, number)
            if rounds[-1]["alarms"] and self.plan.watch:
                break
            self._refresh(number)
        return chronicle.write(self.stages.folder, self.plan, rounds)

    @cached_property
    def _start(self) -> SequenceLogprobs:
        return SequenceLogprobs(self.parts.start)

    def _round(self, policy: Policy, number: int) -> Policy:
        """One round of drawing, labelling, filtering and learning."""
        stages = self.stages.subfolder(f"round-{number}")
        prompts = self._prompts(number)
        pairs = [
            LabelledPair.from_row(row)
            for row in stages.load_or_create_rows("pairs", lambda: self._pairs(stages, policy, prompts, number))
        ]
        margins = stages.load_or_create_json("margins", lambda: self.parts.sieve(pairs, number))
        kept = [pair for pair, margin in zip(pairs, margins, strict=True) if margin >= self.plan.min_margin]
        where = f"round {number}"

        def learn(folder: Path) -> None:
            rows = dpo.build_rows(kept, self._start, self._told(f"{where}: reference"))
            dpo.train_adapter(
                policy, rows, self.plan, self._seed(number), folder, self._told(f"{where}: DPO")
            )

        return replace(policy, adapter=stages.load_or_create_folder("adapter", learn))

    def _prompts(self, number: int) -> list[Conversation]:
        """The share of a round: prompts in an order the seed decides, from the front again at the end."""
        keys = {turns: hash_to_unit_interval(f"{self.plan.seed}/{turns}") for turns in self.parts.prompts}
        order = sorted(keys, key=keys.__getitem__)
        first = (number - 1) * self.plan.per_round
        count = min(self.plan.per_round, len(order))
        return [order[at % len(order)] for at in range(first, first + count)]

    def _pairs(self, stages: RunArtifacts, policy: Policy, prompts: list[Conversation], number: int) -> list[JsonRow]:
        """The round's labelled pairs as rows."""
        where = f"round {number}"
        if self.plan.labels == "data":
            known = set(prompts)
            found = labelling.label_by_data([pair for pair in self.parts.pairs if pair.messages in known])
        else:
            said = self._said(stages, "candidates", policy, prompts, self._drawing(number), where)
            if self.plan.labels == "reward":
                found = labelling.label_by_reward(self.parts.scorers[reward_hacking.REWARD], prompts, said)
            else:
                found = labelling.label_by_policy(
                    SequenceLogprobs(policy), prompts, said,
                    criterion=self.plan.criterion, report=self._told(f"{where}: judging"),
                )  # fmt: skip
        if not found:
            raise DataError(f"{where}: not one pair of different responses")
        return [one.row for one in found]

    def _measured(self, policy: Policy, number: int) -> JsonRow:
        """What the policy is like, and everything it was found by."""

        def made() -> JsonRow:
            exam, where = self.parts.exam, f"round {number}: measuring"
            exchanges, finished = self._answers(policy, number)
            now = SequenceLogprobs(policy) if number else self._start
            found = metrics.likelihoods(now, exam, self._told(f"{where}, pairs"))
            start = self._measured(self.parts.start, 0)["likelihoods"] if number else found
            told = metrics.answers(exchanges, finished, now, self._start, self._told(f"{where}, answers"))
            rows = [a | b for a, b in zip(told, metrics.rated(exchanges, self.parts.scorers), strict=True)]
            agreed = metrics.agreement(exam, found, start)
            return {
                "summary": metrics.summary(exam, agreed, rows),
                "agreement": agreed, "answers": rows, "likelihoods": found, "before": self._before(number),
            }  # fmt: skip

        found: JsonRow = self.stages.subfolder(f"round-{number}").load_or_create_json("measures", made)
        return found

    def _answers(self, policy: Policy, number: int) -> tuple[list[Item], list[bool]]:
        """One answer to each test prompt, and whether the policy ended it."""
        plan, prompts = self.plan, self.parts.exam.prompts
        once = SamplingConfig(1, plan.new_tokens, plan.temperature, plan.seed + EVALUATION_SEED_OFFSET)
        stages = self.stages.subfolder(f"round-{number}")
        said = self._said(stages, "answers", policy, prompts, once, f"round {number}: measuring")
        exchanges = [Item(turns, one.response) for turns, (one,) in zip(prompts, said, strict=True)]
        return exchanges, [one.finished for (one,) in said]

    def _before(self, number: int) -> list[JsonRow]:
        """The answers of the round before by the rewards of now, which a refresh may have changed."""
        if not number:
            return []
        exchanges, _ = self._answers(self.parts.start, number - 1)  # kept already; nobody speaks here
        return metrics.rated(exchanges, self.parts.scorers)

    def _said(
        self,
        stages: RunArtifacts,
        name: str,
        policy: Policy,
        prompts: Sequence[Conversation],
        how: SamplingConfig,
        where: str,
    ) -> list[list[Completion]]:
        """Responses to prompts, kept as rows."""

        def made() -> list[JsonRow]:
            said = sample_completions(policy, prompts, how, self._told(f"{where}: drawing"))
            return [
                {
                    "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
                    "responses": [one.response for one in some],
                    "finished": [one.finished for one in some],
                }
                for turns, some in zip(prompts, said, strict=True)
            ]

        rows = stages.load_or_create_rows(name, made)
        return [[Completion(*one) for one in zip(r["responses"], r["finished"], strict=True)] for r in rows]

    def _counts(self, number: int) -> JsonRow:
        margins = self.stages.subfolder(f"round-{number}").load_or_create_json("margins", list)
        kept = sum(margin >= self.plan.min_margin for margin in margins)
        return {"labelled": len(margins), "kept": kept}

    def _alarms(self, rounds: list[JsonRow], number: int) -> list[str]:
        found = [one["summary"] for one in (rounds[0], rounds[number])]
        return reward_hacking.alarms(self.plan, rounds[number]["before"], rounds[number]["answers"], *found)

    def _refresh(self, number: int) -> None:
        """Once after each round."""

        def made() -> JsonRow:
            self.parts.refresh(number)
            return {"round": number}

        self.stages.subfolder(f"round-{number}").load_or_create_json("refreshed", made)

    def _drawing(self, number: int) -> SamplingConfig:
        plan = self.plan
        return SamplingConfig(plan.candidates, plan.new_tokens, plan.temperature, self._seed(number))

    def _seed(self, number: int) -> int:
        return self.plan.seed * 1000 + number

    def _told(self, stage: str) -> Callable[[float], None]:
        return lambda share: self._report(stage, share)
