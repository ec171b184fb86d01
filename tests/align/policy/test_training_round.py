"""One round of alignment: log-probabilities, sampling, labelling and DPO."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.align import labelling, metrics
from app.align.labelling import LabelledPair
from app.align.policy import dpo
from app.align.policy.logprobs import SequenceLogprobs
from app.align.policy.model import Completion, Policy, SamplingConfig, sample_completions
from app.align.reward_functions import ItemReward
from app.settings import Settings
from app.types import Message
from tests.support import alignment_runs, tiny
from tests.support.training_setup import Killed, ignore_progress, kill_after


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny.build_models(tmp_path_factory.mktemp("learning"))


@pytest.fixture(scope="module")
def root(settings: Settings) -> Path:
    return settings.models_dir.parent


@pytest.fixture(scope="module")
def policy(root: Path, settings: Settings) -> Policy:
    return alignment_runs.load_initial_policy(root, settings)


@pytest.fixture(scope="module")
def logprobs(policy: Policy) -> SequenceLogprobs:
    return SequenceLogprobs(policy)


def test_packed_logprobs_equal_those_of_the_language_model(
    policy: Policy, logprobs: SequenceLogprobs
) -> None:
    items = tiny.random_items(24)
    llm = AutoModelForCausalLM.from_pretrained(policy.folder)
    for item, computed in zip(items, logprobs.compute(items), strict=True):
        (encoded,) = policy.text.encode([item])
        with torch.no_grad():
            all_logprobs = llm(torch.tensor([encoded.ids])).logits[0].double().log_softmax(-1)
        targets = torch.tensor(encoded.ids)[1:, None]
        expected = all_logprobs[:-1].gather(1, targets)[encoded.response_start - 1 :, 0]
        assert torch.allclose(computed, expected, atol=1e-4)


def test_samples_depend_only_on_the_seed(policy: Policy) -> None:
    prompts = [item.messages for item in tiny.random_items(5)]
    samples = [
        sample_completions(policy, prompts, SamplingConfig(3, 5, 1.0, seed), ignore_progress)
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1] != samples[2]
    assert [len(group) for group in samples[0]] == [3] * 5
    assert all(completion.response for group in samples[0] for completion in group)


def test_reference_logprobs_are_of_the_initial_policy_and_exclude_the_end_of_cut_responses(
    policy: Policy, logprobs: SequenceLogprobs
) -> None:
    pairs = [
        LabelledPair(
            (Message("user", "river?"),),
            Completion("amber stone", finished=True),
            Completion("glass", finished=finished),
            1.0,
        )
        for finished in (True, False)
    ]
    rows = dpo.build_rows(pairs, logprobs, ignore_progress)
    assert [len(row["rejected_ids"]) for row in rows] == [
        len(rows[0]["rejected_ids"]),
        len(rows[0]["rejected_ids"]) - 1,
    ]
    llm = AutoModelForCausalLM.from_pretrained(policy.folder)
    for row in rows:
        ids = row["prompt_ids"] + row["rejected_ids"]
        with torch.no_grad():
            all_logprobs = llm(torch.tensor([ids])).logits[0].log_softmax(-1)
        targets = torch.tensor(row["rejected_ids"])[:, None]
        expected = all_logprobs[len(row["prompt_ids"]) - 1 : -1].gather(1, targets).sum()
        assert row["ref_rejected_logps"] == pytest.approx(float(expected), abs=1e-3)


def test_dpo_loss_starts_at_log_2(
    policy: Policy, logprobs: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    config = alignment_runs.make_config(root, lr=1e-12)
    pairs = labelling.label_by_data(alignment_runs.build_evaluation_set(root).pairs[:4])
    rows = dpo.build_rows(pairs, logprobs, ignore_progress)
    result = dpo.build_trainer(policy, rows, config, 0, tmp_path).train()
    assert result.training_loss == pytest.approx(math.log(2), abs=1e-4)


def test_dpo_raises_the_logprobs_of_preferred_responses(
    policy: Policy, logprobs: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    evaluation = alignment_runs.build_evaluation_set(root)
    config = alignment_runs.make_config(root, epochs=3, batch=4)
    pairs = labelling.label_by_data(evaluation.pairs)
    rows = dpo.build_rows(pairs, logprobs, ignore_progress)
    dpo.train_adapter(policy, rows, config, 0, tmp_path / "adapter", ignore_progress)
    trained = SequenceLogprobs(replace(policy, adapter=tmp_path / "adapter"))
    before, after = (
        metrics.sum_logprobs(model, evaluation, ignore_progress) for model in (logprobs, trained)
    )
    agreement = metrics.measure_agreement(evaluation, after, before)
    assert min(agreement["implicit"]) > 0
    initial_agreement = metrics.measure_agreement(evaluation, before, before)
    assert sum(agreement["mc2"]) > sum(initial_agreement["mc2"])
    assert set(initial_agreement["implicit"]) == {0.0}


@pytest.mark.heavy
def test_interrupted_dpo_resumes_at_its_checkpoint(
    policy: Policy, logprobs: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    config = alignment_runs.make_config(root, epochs=3, batch=4)
    pairs = labelling.label_by_data(alignment_runs.build_evaluation_set(root).pairs)
    rows = dpo.build_rows(pairs, logprobs, ignore_progress)
    (tmp_path / "interrupted").mkdir()
    kill = kill_after(11)
    with pytest.raises(Killed):
        dpo.train_adapter(policy, rows, config, 0, tmp_path / "interrupted" / "adapter", kill)
    (checkpoint,) = (tmp_path / "interrupted" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-10"
    for name in ("interrupted", "uninterrupted"):
        (tmp_path / name).mkdir(exist_ok=True)
        dpo.train_adapter(policy, rows, config, 0, tmp_path / name / "adapter", ignore_progress)
    interrupted, uninterrupted = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("interrupted", "uninterrupted")
    )
    assert interrupted == uninterrupted


def test_labels_come_from_the_policy_or_the_reward(logprobs: SequenceLogprobs) -> None:
    prompts = [item.messages for item in tiny.random_items(6)]
    first, second = Completion("amber", finished=True), Completion("stone glass", finished=True)
    candidates = [[first, second] for _ in prompts]
    candidates[2] = [first] * 2
    labelled = labelling.label_by_policy(
        logprobs, prompts, candidates, criterion="better", progress=ignore_progress
    )
    swapped = labelling.label_by_policy(
        logprobs, prompts, [group[::-1] for group in candidates], criterion="better", progress=ignore_progress
    )
    assert len(labelled) == 5
    assert [pair.chosen for pair in labelled] == [pair.chosen for pair in swapped]
    assert [pair.lead for pair in labelled] == pytest.approx([pair.lead for pair in swapped])
    assert [LabelledPair.from_row(json.loads(json.dumps(pair.row))) for pair in labelled] == labelled
    longest = labelling.label_by_reward(
        lambda items: [ItemReward(len(item.response), 0) for item in items], prompts, candidates
    )
    assert {pair.chosen.response for pair in longest} == {"stone glass"}
