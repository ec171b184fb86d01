"""The alignment loop: sample, label, filter, train by DPO and evaluate, round by round.

It ends after the configured rounds or at an alarm. Every artifact of a round is stored in the run's folder,
and existing artifacts are not computed again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from app.align import labelling, metrics, report, reward_hacking
from app.align.artifacts import JsonRow, RunArtifacts
from app.align.config import AlignmentConfig
from app.align.labelling import LabelledPair
from app.align.metrics import EvaluationSet
from app.align.policy import dpo
from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Completion, Conversation, Policy, SamplingConfig, sample_completions
from app.align.reward_functions import RewardFunction
from app.data.pairs import hash_to_unit_interval
from app.errors import DataError
from app.types import Item, Pair, Progress

MarginFunction = Callable[[Sequence[LabelledPair], int], list[float]]
RoundCallback = Callable[[int], None]
EVALUATION_SEED_OFFSET = 7919


@dataclass(frozen=True, slots=True)
class AlignmentInputs:
    """The initial policy, the data and the rewards of a run.

    `compute_margins` returns the margin of each pair of a round, by which pairs are filtered.
    `reward_functions` are keyed by the names in `reward_hacking`. `on_round_end` is called with the number of
    every round that ends without an alarm.
    """

    initial_policy: Policy
    prompts: Sequence[Conversation]
    pairs: Sequence[Pair]
    evaluation: EvaluationSet
    compute_margins: MarginFunction
    reward_functions: dict[str, RewardFunction]
    on_round_end: RoundCallback


def make_margin_function(compute_rewards: RewardFunction) -> MarginFunction:
    """Return a function that computes the reward margin of each pair, the filter of the SparseRM paper."""

    def compute_margins(pairs: Sequence[LabelledPair], _: int) -> list[float]:
        rewards = [item.reward for item in compute_rewards([item for pair in pairs for item in pair.items])]
        return [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]

    return compute_margins


class AlignmentLoop:
    """One run in its folder."""

    def __init__(
        self, config: AlignmentConfig, inputs: AlignmentInputs, folder: Path, progress: Progress
    ) -> None:
        self.config, self.inputs = config, inputs
        self.artifacts = RunArtifacts(folder)
        self._progress = progress

    def run(self, recorded_config: JsonRow) -> JsonRow:
        """Run all rounds, or the remaining ones; write the report and return it.

        A folder that holds a run with another `recorded_config` is refused.
        """
        self.artifacts.record_config(recorded_config)
        policy = self.inputs.initial_policy
        rounds = [self._evaluate(policy, 0)]
        for number in range(1, self.config.rounds + 1):
            policy = self._run_round(policy, number)
            rounds.append(self._evaluate(policy, number) | {"pairs": self._count_pairs(number)})
            rounds[-1]["alarms"] = self._find_alarms(rounds, number)
            if rounds[-1]["alarms"] and self.config.watch:
                break
            self._finish_round(number)
        return report.write_report(self.artifacts.folder, self.config, rounds)

    @cached_property
    def _initial_logprobs(self) -> SequenceLogprobs:
        return SequenceLogprobs(self.inputs.initial_policy)

    def _run_round(self, policy: Policy, number: int) -> Policy:
        """Sample, label and filter pairs, train on them, and return the policy with the new adapter."""
        artifacts = self.artifacts.subfolder(f"round-{number}")
        rows = artifacts.load_or_create_rows("pairs", lambda: self._create_pairs(policy, number))
        pairs = [LabelledPair.from_row(row) for row in rows]
        margins = artifacts.load_or_create_json("margins", lambda: self.inputs.compute_margins(pairs, number))
        kept_pairs = [
            pair for pair, margin in zip(pairs, margins, strict=True) if margin >= self.config.min_margin
        ]
        stage = f"round {number}"

        def train(folder: Path) -> None:
            rows = dpo.build_rows(
                kept_pairs, self._initial_logprobs, self._stage_progress(f"{stage}: reference")
            )
            progress = self._stage_progress(f"{stage}: DPO")
            dpo.train_adapter(policy, rows, self.config, self._seed(number), folder, progress)

        return replace(policy, adapter=artifacts.load_or_create_folder("adapter", train))

    def _select_prompts(self, number: int) -> list[Conversation]:
        """Return the prompts of a round: the next ones in an order that the seed determines, cyclically."""
        keys = {
            prompt: hash_to_unit_interval(f"{self.config.seed}/{prompt}") for prompt in self.inputs.prompts
        }
        order = sorted(keys, key=keys.__getitem__)
        first = (number - 1) * self.config.per_round
        count = min(self.config.per_round, len(order))
        return [order[index % len(order)] for index in range(first, first + count)]

    def _create_pairs(self, policy: Policy, number: int) -> list[JsonRow]:
        """Return the labelled pairs of a round as rows."""
        prompts = self._select_prompts(number)
        if self.config.labels == "data":
            selected = set(prompts)
            pairs = labelling.label_by_data([p for p in self.inputs.pairs if p.messages in selected])
        else:
            pairs = self._label_samples(policy, prompts, number)
        if not pairs:
            raise DataError(f"round {number}: no prompt has two different responses to compare")
        return [pair.row for pair in pairs]

    def _label_samples(self, policy: Policy, prompts: list[Conversation], number: int) -> list[LabelledPair]:
        """Sample responses from the policy and label them by the reward or by the policy itself."""
        stage, config = f"round {number}", self.config
        sampling = SamplingConfig(
            config.candidates, config.new_tokens, config.temperature, self._seed(number)
        )
        completions = self._sample("candidates", policy, prompts, sampling, number, stage)
        if config.labels == "reward":
            compute_rewards = self.inputs.reward_functions[reward_hacking.REWARD]
            return labelling.label_by_reward(compute_rewards, prompts, completions)
        return labelling.label_by_policy(
            SequenceLogprobs(policy), prompts, completions,
            criterion=config.criterion, progress=self._stage_progress(f"{stage}: labelling"),
        )  # fmt: skip

    def _evaluate(self, policy: Policy, number: int) -> JsonRow:
        """Return the metrics of the policy after a round, and the measurements behind them."""

        def measure() -> JsonRow:
            evaluation, stage = self.inputs.evaluation, f"round {number}: evaluation"
            items, finished = self._answer_test_prompts(policy, number)
            current = SequenceLogprobs(policy) if number else self._initial_logprobs
            logprobs = metrics.sum_logprobs(current, evaluation, self._stage_progress(f"{stage}, pairs"))
            initial = self._evaluate(self.inputs.initial_policy, 0)["likelihoods"] if number else logprobs
            progress = self._stage_progress(f"{stage}, responses")
            measured = metrics.measure_responses(items, finished, current, self._initial_logprobs, progress)
            rewards = metrics.score_responses(items, self.inputs.reward_functions)
            responses = [a | b for a, b in zip(measured, rewards, strict=True)]
            agreement = metrics.measure_agreement(evaluation, logprobs, initial)
            return {
                "summary": metrics.summarize(evaluation, agreement, responses),
                "agreement": agreement, "answers": responses, "likelihoods": logprobs,
                "before": self._score_previous_answers(number),
            }  # fmt: skip

        artifacts = self.artifacts.subfolder(f"round-{number}")
        row: JsonRow = artifacts.load_or_create_json("measures", measure)
        return row

    def _answer_test_prompts(self, policy: Policy, number: int) -> tuple[list[Item], list[bool]]:
        """Return one response to each test prompt, and whether the policy finished it."""
        config, prompts = self.config, self.inputs.evaluation.prompts
        seed = config.seed + EVALUATION_SEED_OFFSET
        sampling = SamplingConfig(1, config.new_tokens, config.temperature, seed)
        stage = f"round {number}: evaluation"
        completions = self._sample("answers", policy, prompts, sampling, number, stage)
        items = [
            Item(prompt, completion.response)
            for prompt, (completion,) in zip(prompts, completions, strict=True)
        ]
        return items, [completion.finished for (completion,) in completions]

    def _score_previous_answers(self, number: int) -> list[JsonRow]:
        """Return the rewards of the previous round's answers under the current reward models.

        They may differ from those measured in that round, since `on_round_end` may have retrained a model.
        """
        if not number:
            return []
        # The answers are stored already, so the policy passed here generates nothing.
        items, _ = self._answer_test_prompts(self.inputs.initial_policy, number - 1)
        return metrics.score_responses(items, self.inputs.reward_functions)

    def _sample(
        self,
        name: str,
        policy: Policy,
        prompts: Sequence[Conversation],
        sampling: SamplingConfig,
        number: int,
        stage: str,
    ) -> list[list[Completion]]:
        """Return sampled responses to the prompts, stored as rows of the round's artifact `name`."""

        def sample() -> list[JsonRow]:
            progress = self._stage_progress(f"{stage}: sampling")
            completions = sample_completions(policy, prompts, sampling, progress)
            return [
                {
                    "messages": [{"role": message.role, "content": message.content} for message in prompt],
                    "responses": [completion.response for completion in group],
                    "finished": [completion.finished for completion in group],
                }
                for prompt, group in zip(prompts, completions, strict=True)
            ]

        rows = self.artifacts.subfolder(f"round-{number}").load_or_create_rows(name, sample)
        return [
            [Completion(*pair) for pair in zip(row["responses"], row["finished"], strict=True)]
            for row in rows
        ]

    def _count_pairs(self, number: int) -> JsonRow:
        margins = self.artifacts.subfolder(f"round-{number}").load_or_create_json("margins", list)
        num_kept = sum(margin >= self.config.min_margin for margin in margins)
        return {"labelled": len(margins), "kept": num_kept}

    def _find_alarms(self, rounds: list[JsonRow], number: int) -> list[str]:
        initial, current = (row["summary"] for row in (rounds[0], rounds[number]))
        before, after = rounds[number]["before"], rounds[number]["answers"]
        return reward_hacking.find_alarms(self.config, before, after, initial, current)

    def _finish_round(self, number: int) -> None:
        """Call `on_round_end`; a resumed run does not repeat a call that was completed."""

        def call() -> JsonRow:
            self.inputs.on_round_end(number)
            return {"round": number}

        self.artifacts.subfolder(f"round-{number}").load_or_create_json("refreshed", call)

    def _seed(self, number: int) -> int:
        return self.config.seed * 1000 + number

    def _stage_progress(self, stage: str) -> Callable[[float], None]:
        return lambda share: self._progress(stage, share)
