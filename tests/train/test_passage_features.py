"""Summaries of passages determine the projections of all windows."""

import pytest
import torch

from app.reward.passages import list_windows
from app.train import passage_features
from app.train.passage_features import PASSAGE_LENGTHS, project_passages, summarise_passages

WIDTH = 6
DIRECTIONS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


def make_rows(tokens: int) -> torch.Tensor:
    """Return the residuals of a response."""
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("lengths", [(8,), (16,), (32,), (8, 32), PASSAGE_LENGTHS])
def test_projections_are_those_of_the_windows_of_the_server(lengths: tuple[int, ...]) -> None:
    counts = [3, 8, 9, 15, 16, 17, 32, 33, 83, 200]
    rows = [make_rows(count) for count in counts]
    projections = project_passages([summarise_passages(r) for r in rows], counts, DIRECTIONS, lengths)
    expected = [
        response[start:end].mean(0) @ DIRECTIONS.T
        for response, count in zip(rows, counts, strict=True)
        for start, end in list_windows(count, lengths)
    ]
    assert torch.allclose(projections, torch.stack(expected), atol=5e-3)


def test_short_responses_have_no_windows() -> None:
    summary = summarise_passages(make_rows(7))
    assert (summary["blocks"].shape, summary["tails"].shape) == ((3, WIDTH), (0, WIDTH))
    assert project_passages([summary], [7], DIRECTIONS, PASSAGE_LENGTHS).shape == (0, 3)


def test_residuals_beyond_half_precision_stay_finite() -> None:
    summary = summarise_passages(make_rows(40) * 1e6)
    assert all(tensor.isfinite().all() for tensor in summary.values())
    assert summary["blocks"].dtype == torch.half


def test_every_length_is_made_of_whole_blocks() -> None:
    assert all(length // 4 % passage_features.BLOCK_TOKENS == 0 for length in PASSAGE_LENGTHS)
