"""Accuracy and its intervals, calibration, and dependence on length."""

import pytest
import torch

from app.data.pairs import match_condition
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
from app.reward.calibration import OUTLIER_PERCENTILE, Calibration
from app.types import Message, Pair


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
