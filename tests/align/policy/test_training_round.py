"""What a round does to a policy: reading, drawing, labelling, learning."""

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
from app.align.reward_scoring import Verdict
from app.settings import Settings
from app.types import Message
from tests.support import alignment_runs, tiny
from tests.support.training_setup import Killed, killing, quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny.build_models(tmp_path_factory.mktemp("learning"))


@pytest.fixture(scope="module")
def root(world: Settings) -> Path:
    return world.models_dir.parent


@pytest.fixture(scope="module")
def start(root: Path, world: Settings) -> Policy:
    return alignment_runs.start(root, world)


@pytest.fixture(scope="module")
def reading(start: Policy) -> SequenceLogprobs:
    return SequenceLogprobs(start)


def test_a_packed_likelihood_is_the_language_model_s_own(start: Policy, reading: SequenceLogprobs) -> None:
    exchanges = tiny.random_items(24)
    llm = AutoModelForCausalLM.from_pretrained(start.folder)
    for one, found in zip(exchanges, reading.compute(exchanges), strict=True):
        (encoded,) = start.text.encode([one])
        with torch.no_grad():
            chances = llm(torch.tensor([encoded.ids])).logits[0].double().log_softmax(-1)
        wanted = chances[:-1].gather(1, torch.tensor(encoded.ids)[1:, None])[encoded.response_start - 1 :, 0]
        assert torch.allclose(found, wanted, atol=1e-4)


def test_what_is_drawn_depends_on_the_seed_alone(start: Policy) -> None:
    prompts = [one.messages for one in tiny.random_items(5)]
    drawn = [sample_completions(start, prompts, SamplingConfig(3, 5, 1.0, seed), quiet) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(some) for some in drawn[0]] == [3] * 5
    assert all(one.response for some in drawn[0] for one in some)


def test_the_reference_is_the_start_and_ends_where_a_response_was_cut(
    start: Policy, reading: SequenceLogprobs
) -> None:
    pairs = [
        LabelledPair(
            (Message("user", "river?"),), Completion("amber stone", True), Completion("glass", done), 1.0
        )
        for done in (True, False)
    ]
    rows = dpo.build_rows(pairs, reading, quiet)
    assert [len(row["rejected_ids"]) for row in rows] == [
        len(rows[0]["rejected_ids"]),
        len(rows[0]["rejected_ids"]) - 1,
    ]
    llm = AutoModelForCausalLM.from_pretrained(start.folder)
    for row in rows:
        ids = row["prompt_ids"] + row["rejected_ids"]
        with torch.no_grad():
            chances = llm(torch.tensor([ids])).logits[0].log_softmax(-1)
        said_ids = torch.tensor(row["rejected_ids"])[:, None]
        wanted = chances[len(row["prompt_ids"]) - 1 : -1].gather(1, said_ids).sum()
        assert row["ref_rejected_logps"] == pytest.approx(float(wanted), abs=1e-3)


def test_dpo_begins_where_policy_and_reference_agree(
    start: Policy, reading: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    what = alignment_runs.plan(root, lr=1e-12)
    rows = dpo.build_rows(labelling.label_by_data(alignment_runs.exam(root).pairs[:4]), reading, quiet)
    done = dpo.build_trainer(start, rows, what, 0, tmp_path).train()
    assert done.training_loss == pytest.approx(math.log(2), abs=1e-4)


def test_dpo_makes_the_preferred_responses_likelier(
    start: Policy, reading: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    exam, what = alignment_runs.exam(root), alignment_runs.plan(root, epochs=3, batch=4)
    pairs = labelling.label_by_data(exam.pairs)
    dpo.train_adapter(start, dpo.build_rows(pairs, reading, quiet), what, 0, tmp_path / "made", quiet)
    taught = SequenceLogprobs(replace(start, adapter=tmp_path / "made"))
    before, after = (metrics.likelihoods(one, exam, quiet) for one in (reading, taught))
    agreed = metrics.agreement(exam, after, before)
    assert min(agreed["implicit"]) > 0
    first = metrics.agreement(exam, before, before)
    assert sum(agreed["mc2"]) > sum(first["mc2"])
    assert set(first["implicit"]) == {0.0}


@pytest.mark.heavy
def test_a_cut_dpo_goes_on_at_its_checkpoint(
    start: Policy, reading: SequenceLogprobs, root: Path, tmp_path: Path
) -> None:
    what = alignment_runs.plan(root, epochs=3, batch=4)
    rows = dpo.build_rows(labelling.label_by_data(alignment_runs.exam(root).pairs), reading, quiet)
    (tmp_path / "cut").mkdir()
    killed = killing(11)
    with pytest.raises(Killed):
        dpo.train_adapter(start, rows, what, 0, tmp_path / "cut" / "made", killed)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-10"
    for name in ("cut", "straight"):
        (tmp_path / name).mkdir(exist_ok=True)
        dpo.train_adapter(start, rows, what, 0, tmp_path / name / "made", quiet)
    cut, straight = (
        (tmp_path / name / "made" / "adapter_model.safetensors").read_bytes() for name in ("cut", "straight")
    )
    assert cut == straight


def test_labels_come_from_the_policy_or_the_reward(reading: SequenceLogprobs) -> None:
    prompts = [one.messages for one in tiny.random_items(6)]
    couples = [[Completion("amber", True), Completion("stone glass", True)] for _ in prompts]  # noqa: FBT003
    couples[2] = [couples[2][0]] * 2
    own = labelling.label_by_policy(reading, prompts, couples, criterion="better", report=quiet)
    swapped = labelling.label_by_policy(
        reading, prompts, [some[::-1] for some in couples], criterion="better", report=quiet
    )
    assert len(own) == 5
    assert [one.chosen for one in own] == [one.chosen for one in swapped]
    assert [one.lead for one in own] == pytest.approx([one.lead for one in swapped])
    assert [LabelledPair.from_row(json.loads(json.dumps(one.row))) for one in own] == own
    longest = labelling.label_by_reward(
        lambda some: [Verdict(len(e.response), 0) for e in some], prompts, couples
    )
    assert {one.chosen.response for one in longest} == {"stone glass"}
