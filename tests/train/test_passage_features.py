"""Summaries of passages determine the projections of all passages."""

import torch

from app.reward.passages import list_passages
from app.train.passage_features import project_passages, summarise_passages

WIDTH = 6
DIRECTIONS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


def make_response(tokens: int) -> tuple[torch.Tensor, list[bool]]:
    """Return the residuals of a response, and which of its tokens end a sentence."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, WIDTH, generator=generator), [index % 7 == 6 for index in range(tokens)]


def test_projections_are_those_of_the_passages_of_the_server() -> None:
    responses = [make_response(count) for count in (1, 3, 4, 7, 8, 16, 83, 200)]
    projections = project_passages([summarise_passages(*response) for response in responses], DIRECTIONS)
    expected = [
        rows[start:end].mean(0) @ DIRECTIONS.T
        for rows, marks in responses
        for start, end in list_passages(marks)
    ]
    assert torch.allclose(projections, torch.stack(expected), atol=5e-3)


def test_without_responses_there_are_no_passages() -> None:
    assert project_passages([], DIRECTIONS).shape == (0, 3)


def test_residuals_beyond_half_precision_stay_finite() -> None:
    rows, marks = make_response(40)
    summary = summarise_passages(rows * 1e6, marks)
    assert summary["means"].isfinite().all()
    assert summary["means"].dtype == torch.half
    assert summary["spans"].tolist() == [list(span) for span in list_passages(marks)]
