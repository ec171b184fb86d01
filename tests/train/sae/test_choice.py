"""Of several SAEs of responses, the one whose selected directions predict preferences best is kept."""

from dataclasses import replace

import pytest
import torch

from app.train.features import PairFeatures
from app.train.sae import choice
from app.train.sae.choice import choose_response_sae
from app.train.sae.response_sae import ResponseSaeConfig, train_response_sae
from app.train.selection import SelectionData
from app.types import Pooling
from tests.support.training_setup import ignore_progress

LAYER, WIDTH, PAIRS = 3, 12, 150
CONFIG = ResponseSaeConfig(latents=16, k=3, steps=120, batch=64, candidates=3)


def make_data() -> SelectionData:
    """Return pairs whose chosen responses have more of a sparse direction."""
    generator = torch.Generator().manual_seed(5)
    residuals = torch.randn(2 * PAIRS, WIDTH, generator=generator)
    residuals[::2, 0] += 4 * (torch.rand(PAIRS, generator=generator) < 0.6)
    features = PairFeatures(
        response_index=torch.arange(2 * PAIRS).reshape(-1, 2),
        token_counts=torch.full((2 * PAIRS,), 7),
        residuals={LAYER: residuals[:, None].repeat(1, 3, 1)},
        latents=[],
        num_latents=0,
    )
    return SelectionData(features, [f"prompt {i}" for i in range(PAIRS)], 4, 0)


def test_the_candidate_with_the_lowest_held_out_loss_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    losses: list[float] = []
    compute_loss = choice.compute_preference_loss

    def record(*arguments: object) -> float:
        losses.append(compute_loss(*arguments))  # type: ignore[arg-type]
        return losses[-1]

    monkeypatch.setattr(choice, "compute_preference_loss", record)
    kept = choose_response_sae(data, LAYER, Pooling.MEAN, CONFIG, ignore_progress)
    assert len(losses) == 3
    assert len(set(losses)) == 3
    best = replace(CONFIG, seed=losses.index(min(losses)))
    residuals = data.features.pooled_residuals(LAYER, Pooling.MEAN).flatten(0, 1)
    expected = train_response_sae(residuals, best, ignore_progress)
    assert torch.equal(kept.dictionary.directions, expected.dictionary.directions)


def test_candidates_of_different_seeds_are_different_and_progress_ends_at_one() -> None:
    data = make_data()
    shares: list[float] = []
    first = choose_response_sae(data, LAYER, Pooling.MEAN, replace(CONFIG, candidates=1), shares.append)
    second = choose_response_sae(
        data, LAYER, Pooling.MEAN, replace(CONFIG, candidates=1, seed=1), ignore_progress
    )
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert not torch.equal(first.dictionary.directions, second.dictionary.directions)


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_response_sae(make_data(), LAYER, Pooling.MEAN, replace(CONFIG, candidates=0), ignore_progress)
