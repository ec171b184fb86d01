"""Accuracy and its intervals, calibration and length; variants of the method and the StandardRM."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from app.data.pairs import match_condition, read_pairs
from app.errors import DataError
from app.evaluate.accuracy import (
    ScoredPairs,
    accuracy_difference,
    expected_calibration_error,
    length_correlation,
    pair_accuracy,
    pair_wins,
    predict_both_orders,
)
from app.reward import loading
from app.reward.calibration import OUTLIER_PERCENTILE, Calibration
from app.settings import Settings
from app.train import jobs
from app.train.feature_cache import TensorCache
from app.types import Message, Pair
from benchmarks.research import compare_standard_rm, standard_rm
from tests.support.training_setup import Killed, killing_at, order, quiet


def test_calibration_tables_are_interpolated_and_bounded() -> None:
    ranks = torch.linspace(0, 10, 201, dtype=torch.float64)
    variances, trend = torch.tensor([1.0, 1.0]).double(), torch.tensor([[1.0, 3.0], [1.0, 9.0]]).double()
    table = Calibration(
        2.0,
        torch.stack([ranks, ranks / 2]),
        torch.eye(2).double(),
        variances,
        ranks,
        trend,
        torch.zeros(2, 9),
    )
    rewards = torch.tensor([-1.0, 5.0, 99.0, 2.5], dtype=torch.float64)
    controlled = torch.tensor([False, False, False, True])
    assert table.compute_percentile(rewards, controlled).tolist() == [0, 50, 100, 50]
    inputs = torch.tensor([[50**0.5, 0.0], [3.0, 4.0]], dtype=torch.float64)
    read = torch.tensor([1, 10**9])
    assert table.compute_distance(inputs, read, torch.tensor([4, 8])).tolist() == pytest.approx([50, 50])
    assert table.compute_distance(inputs, read, torch.tensor([2, 9])).tolist() == [
        OUTLIER_PERCENTILE,
        OUTLIER_PERCENTILE,
    ]
    assert table.compute_length_correction(torch.tensor([2, 4, 8, 10**6])).tolist() == [-1, -5, -9, -9]
    assert table.compute_preference_probability(0) == 0.5


def test_the_interval_of_an_accuracy_respects_groups() -> None:
    margins = torch.tensor([1.0, -1.0] * 50)
    ungrouped = pair_accuracy(margins, [str(i) for i in range(100)])
    grouped = pair_accuracy(margins, [str(i % 2) for i in range(100)])
    assert ungrouped.accuracy == grouped.accuracy == 0.5
    assert grouped.ci_high - grouped.ci_low > ungrouped.ci_high - ungrouped.ci_low
    assert pair_accuracy(torch.zeros(4), list("abcd")).accuracy == 0.5
    wins = pair_wins(margins)
    assert accuracy_difference(wins, wins, [str(i) for i in range(100)]).ci_high == 0


def test_a_calibrated_model_has_a_small_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator)
    signs = torch.where(torch.rand(20_000, generator=generator) < torch.sigmoid(logits), 1.0, -1.0)
    assert expected_calibration_error(*predict_both_orders(logits * signs, 1.0)) < 0.02
    assert expected_calibration_error(*predict_both_orders(logits * signs * 8, 1.0)) > 0.1


def test_length_correlation_is_measured_within_prompts() -> None:
    rewards = torch.tensor([[1.0, 0.0], [2.0, 1.0]]).repeat(20, 1)
    tokens = torch.tensor([[9, 3], [90, 30]]).repeat(20, 1)
    groups = [str(i // 2) for i in range(40)]
    assert length_correlation(ScoredPairs(rewards, tokens, groups)) > 0.5
    assert length_correlation(ScoredPairs(rewards, tokens.flip(1), groups)) < length_correlation(
        ScoredPairs(rewards, tokens, groups)
    )


@pytest.mark.heavy
def test_every_variant_is_evaluated_and_added_to_the_report(
    training_settings: Settings, trained_sae: Path
) -> None:
    root = training_settings.models_dir.parent
    pairs, test = str(root / "pairs.jsonl"), str(root / "test.jsonl")
    jobs.train_and_save(
        order(training_settings, trained_sae, "studied", tested=True), trained_sae, training_settings, quiet
    )
    choices: dict[str, Any] = {"layers": (2, 3, 4), "seeds": 2, "limit": 150, "bad": None}
    choices["elsewhere"] = [pairs]
    shelf = training_settings.cache / "ablations" / "studied.sqlite"
    with pytest.raises(Killed):
        jobs.ablate("studied", pairs, test, trained_sae, training_settings, killing_at("data", 1), **choices)
    assert shelf.exists()
    jobs.ablate("studied", pairs, test, trained_sae, training_settings, quiet, **choices)
    assert not shelf.exists()
    folder = training_settings.models_dir / "studied"
    found = json.loads((folder / "report.json").read_text())
    jobs.ablate("studied", pairs, test, trained_sae, training_settings, quiet, **choices)
    assert json.loads((folder / "report.json").read_text()) == found
    assert found["ablation"]["pairs"] == 150
    variants = found["ablation"]["variants"]
    first, *others = variants
    assert first.startswith("SparseRM: K = 16, layer 3")
    assert {"random directions", "dense at layer 2", "read-out: end", "TF-IDF of the response"} <= set(others)
    assert variants[first]["accuracy"] > 0.9 > variants["longer response wins"]["accuracy"] - 0.5
    assert all(row["lead"]["n"] == row["n"] == 100 for row in map(variants.get, others) if row)
    assert list(found["ablation"]["data"]["SparseRM"]) == ["100", "300"]
    assert list(found["ablation"]["directions"]["selected"]) == ["16", "32", "64"]
    ours, chance = (found["ablation"]["directions"][name]["16"] for name in ("selected", "random directions"))
    assert chance["lead"]["accuracy"] == pytest.approx(ours["accuracy"] - chance["accuracy"])
    assert found["test"]["n"] == 100
    beyond = found["beyond"]
    assert {place: row["selected directions"]["n"] for place, row in beyond["accuracy"].items()} == {
        "this test": 100, "pairs": 400,
    }  # fmt: skip
    assert beyond["accuracy"]["this test"]["selected directions"]["accuracy"] == variants[first]["accuracy"]
    assert 0 <= beyond["flips"]["random directions"]["accuracy"] < 0.5
    told = (folder / "report.md").read_text()
    assert "## Variants of the method" in told
    assert f"Their lead by the number of directions of each sign: {chance['lead']['accuracy']:+.3f}" in told
    assert {"variants.png", "data.png", "directions.png"} <= {file.name for file in folder.iterdir()}


@pytest.mark.heavy
def test_the_comparison_with_a_standard_rm_resumes_when_interrupted(
    training_settings: Settings, trained_sae: Path
) -> None:
    what = order(training_settings, trained_sae, "duelled", tested=True)
    jobs.train_and_save(what, trained_sae, training_settings, quiet)
    plan = standard_rm.StandardPlan()
    with pytest.raises(Killed):
        jobs.against_standard(what, trained_sae, [160], plan, training_settings, killing_at("StandardRM", 20))
    (checkpoint,) = (training_settings.cache / "standard").glob("*/checkpoint-*")
    assert checkpoint.name == "checkpoint-20"
    with pytest.raises(Killed):
        jobs.against_standard(
            what, trained_sae, [160], plan, training_settings, killing_at("scoring the test", 20)
        )
    found = jobs.against_standard(what, trained_sae, [160], plan, training_settings, quiet)
    row = found["sizes"]["160"]
    assert row["pairs"] == 160
    assert row["sparse"]["accuracy"] > 0.9
    assert row["standard"]["trainable"] > 10_000
    assert row["standard"]["seconds"] > 0
    told = (training_settings.models_dir / "duelled" / "report.md").read_text()
    assert "## Comparison with a StandardRM" in told
    ratio = row["standard"]["cpu_seconds"] / row["sparse"]["cpu_seconds"]
    assert f"The CPU time of the StandardRM is {ratio:.0f} times SparseRM's on 160 pairs" in told
    stock = jobs.time_stock("duelled", what.pairs, 12, training_settings, quiet)
    assert (stock["pairs"], stock["threads"]) == (12, torch.get_num_threads())
    longer = stock["cpu_seconds"]["stock"] / stock["cpu_seconds"]["siblings"]
    told = (training_settings.models_dir / "duelled" / "report.md").read_text()
    expected = f"{longer:.1f} times as long. At that speed the CPU time of the StandardRM is "
    assert f"{expected}{ratio * longer:.0f} times SparseRM's on 160 pairs" in told


def test_a_standard_rm_reads_a_pair_as_transformers_does(training_settings: Settings, tmp_path: Path) -> None:
    root = training_settings.models_dir.parent
    _, text = loading.load_backbone(str(root / "backbone"), 3, training_settings, quiet)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(root / "backbone", num_labels=1).eval()
    model.config.pad_token_id = text.padding_token
    model.score.weight.data *= 100
    pairs = read_pairs(root / "test.jsonl")[:8]
    alone = [
        [model(input_ids=torch.tensor([one.ids])).logits.item() for one in text.encode(pair.items)]
        for pair in pairs
    ]
    shelf = TensorCache(tmp_path / "margins.sqlite")
    with pytest.raises(Killed):
        standard_rm.margins(model, text, pairs, shelf, killing_at("scoring the test", 4))
    blank = copy.deepcopy(model)
    blank.score.weight.data.zero_()
    begun = standard_rm.margins(blank, text, pairs[:5], shelf, quiet)
    found = standard_rm.margins(model, text, pairs, shelf, quiet)
    expected = torch.tensor([chosen - rejected for chosen, rejected in alone]).double()
    assert torch.equal(found[:5], begun)
    assert text.padding_token in text.encode(pairs[0].items)[0].ids
    assert torch.allclose(found, expected, atol=1e-3 if standard_rm.precision() == "float32" else 0.2)


def test_a_comparison_is_merged_with_earlier_ones_of_the_same_settings() -> None:
    def held(sizes: list[int], *, threads: int = 1, n: int = 50) -> dict[str, Any]:
        rows = {str(size): {"pairs": size, "lead": {"n": n}, "of": len(sizes)} for size in sizes}
        return {"plan": {"epochs": 3}, "threads": threads, "sizes": rows}

    first, second = held([1000]), held([300, 3000])
    assert compare_standard_rm.joined({}, first) == first
    both = compare_standard_rm.joined(first, second)
    assert list(both["sizes"]) == ["300", "1000", "3000"]
    assert both["sizes"]["1000"] == first["sizes"]["1000"]
    assert compare_standard_rm.joined(both, held([1000, 10]))["sizes"]["1000"]["of"] == 2
    for other in (held([300], threads=2), held([300], n=49), {**held([300]), "plan": {"epochs": 1}}):
        assert compare_standard_rm.joined(first, other) == other


def test_conditions_select_pairs_by_their_attributes() -> None:
    pairs = [
        Pair((Message("user", "q"),), "a", "b", "g", (("kind", kind), ("support", n)))
        for kind, n in ("x1", "y3")
    ]
    assert match_condition(pairs, "kind=x") == [True, False]
    assert match_condition(pairs, "support>=2") == [False, True]
    assert match_condition(pairs, "support<=2") == [True, False]
    assert match_condition(pairs, "other=1") == [False, False]
    with pytest.raises(DataError, match="is not a condition"):
        match_condition(pairs, "kind")
    with pytest.raises(DataError, match="cannot compare"):
        match_condition(pairs, "kind>=2")
