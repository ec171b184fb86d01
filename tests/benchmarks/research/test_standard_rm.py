"""The comparison with a fine-tuned StandardRM: resuming, timing beside TRL, and merging with earlier ones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from app.data.pairs import read_pairs
from app.reward import loading
from app.settings import Settings
from app.train import jobs
from app.train.feature_cache import TensorCache
from benchmarks.research import compare_standard_rm, standard_rm, trl_baseline
from tests.support.training_setup import Killed, ignore_progress, kill_in_stage, training_config


@pytest.mark.heavy
def test_the_comparison_with_a_standard_rm_resumes_when_interrupted(
    training_settings: Settings, trained_sae: Path
) -> None:
    config = training_config(training_settings, trained_sae, "compared", with_test=True)
    jobs.train_and_save(config, trained_sae, training_settings, ignore_progress)
    standard_config = standard_rm.StandardRMConfig()
    with pytest.raises(Killed):
        compare_standard_rm.compare_and_report(
            config, trained_sae, [160], standard_config, training_settings, kill_in_stage("StandardRM", 20)
        )
    (checkpoint,) = (training_settings.cache / "standard").glob("*/checkpoint-*")
    assert checkpoint.name == "checkpoint-20"
    with pytest.raises(Killed):
        compare_standard_rm.compare_and_report(
            config,
            trained_sae,
            [160],
            standard_config,
            training_settings,
            kill_in_stage("scoring the test", 20),
        )
    results = compare_standard_rm.compare_and_report(
        config, trained_sae, [160], standard_config, training_settings, ignore_progress
    )
    row = results["sizes"]["160"]
    assert row["pairs"] == 160
    assert row["sparse"]["accuracy"] > 0.9
    assert row["standard"]["trainable"] > 10_000
    assert row["standard"]["seconds"] > 0
    page = (training_settings.models_dir / "compared" / "report.md").read_text()
    assert "## Comparison with a StandardRM" in page
    ratio = row["standard"]["cpu_seconds"] / row["sparse"]["cpu_seconds"]
    assert f"The CPU time of the StandardRM is {ratio:.0f} times SparseRM's on 160 pairs" in page
    stock = trl_baseline.time_and_report("compared", config.pairs, 12, training_settings, ignore_progress)
    assert (stock["pairs"], stock["threads"]) == (12, torch.get_num_threads())
    longer = stock["cpu_seconds"]["stock"] / stock["cpu_seconds"]["siblings"]
    page = (training_settings.models_dir / "compared" / "report.md").read_text()
    expected = f"{longer:.1f} times as long. At that speed the CPU time of the StandardRM is "
    assert f"{expected}{ratio * longer:.0f} times SparseRM's on 160 pairs" in page


def test_a_standard_rm_reads_a_pair_as_transformers_does(training_settings: Settings, tmp_path: Path) -> None:
    root = training_settings.models_dir.parent
    _, tokenizer = loading.load_backbone(str(root / "backbone"), 3, training_settings, ignore_progress)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(root / "backbone", num_labels=1).eval()
    model.config.pad_token_id = tokenizer.padding_token
    model.score.weight.data *= 100
    pairs = read_pairs(root / "test.jsonl")[:8]
    alone = [
        [
            model(input_ids=torch.tensor([encoded.ids])).logits.item()
            for encoded in tokenizer.encode(pair.items)
        ]
        for pair in pairs
    ]
    cache = TensorCache(tmp_path / "margins.sqlite")
    with pytest.raises(Killed):
        standard_rm.score_margins(model, tokenizer, pairs, cache, kill_in_stage("scoring the test", 4))
    blank = copy.deepcopy(model)
    blank.score.weight.data.zero_()
    first_five = standard_rm.score_margins(blank, tokenizer, pairs[:5], cache, ignore_progress)
    results = standard_rm.score_margins(model, tokenizer, pairs, cache, ignore_progress)
    expected = torch.tensor([chosen - rejected for chosen, rejected in alone]).double()
    assert torch.equal(results[:5], first_five)
    assert tokenizer.padding_token in tokenizer.encode(pairs[0].items)[0].ids
    assert torch.allclose(results, expected, atol=1e-3 if standard_rm.get_precision() == "float32" else 0.2)


def test_a_comparison_is_merged_with_earlier_ones_of_the_same_settings() -> None:
    def make_comparison(sizes: list[int], *, threads: int = 1, n: int = 50) -> dict[str, Any]:
        rows = {str(size): {"pairs": size, "lead": {"n": n}, "of": len(sizes)} for size in sizes}
        return {"plan": {"epochs": 3}, "threads": threads, "sizes": rows}

    first, second = make_comparison([1000]), make_comparison([300, 3000])
    assert compare_standard_rm.merge_sizes({}, first) == first
    both = compare_standard_rm.merge_sizes(first, second)
    assert list(both["sizes"]) == ["300", "1000", "3000"]
    assert both["sizes"]["1000"] == first["sizes"]["1000"]
    assert compare_standard_rm.merge_sizes(both, make_comparison([1000, 10]))["sizes"]["1000"]["of"] == 2
    for other in (
        make_comparison([300], threads=2),
        make_comparison([300], n=49),
        {**make_comparison([300]), "plan": {"epochs": 1}},
    ):
        assert compare_standard_rm.merge_sizes(first, other) == other
