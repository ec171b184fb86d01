"""The SAE of responses finds the directions that its inputs are made of, and encodes raw residuals."""

import pytest
import torch
from torch.nn.functional import normalize

from app.train.sae.response_sae import ResponseSaeConfig, read_sae_config, train_response_sae
from tests.support.training_setup import ignore_progress

NUM_DIRECTIONS, WIDTH, ACTIVE = 12, 24, 2
CONFIG = ResponseSaeConfig(latents=16, k=2, steps=600, batch=128)


def make_residuals(count: int = 2000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return residuals that are sums of a few directions each, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(NUM_DIRECTIONS, WIDTH, generator=generator), dim=1)
    active = torch.rand(count, NUM_DIRECTIONS, generator=generator).topk(ACTIVE, dim=1).indices
    strengths = torch.zeros(count, NUM_DIRECTIONS).scatter_(1, active, 1.0)
    strengths *= 1 + torch.rand(count, NUM_DIRECTIONS, generator=generator)
    offset = torch.randn(WIDTH, generator=generator) * 5
    return strengths @ directions * 3 + offset, directions


def test_finds_the_directions_that_responses_are_made_of() -> None:
    residuals, directions = make_residuals()
    sae = train_response_sae(residuals, CONFIG, ignore_progress)
    deviation = residuals.std(0)
    found = normalize(sae.dictionary.directions * deviation, dim=1)
    cosines = found @ normalize(directions / deviation, dim=1).T
    assert (cosines.max(0).values > 0.9).float().mean() > 0.8
    assert sae.explained_variance > 0.9


def test_a_latent_alone_fires_where_it_was_among_the_largest() -> None:
    residuals, _ = make_residuals()
    sae = train_response_sae(residuals, CONFIG, ignore_progress)
    fired = sae.dictionary.encode(residuals) > 0
    assert fired.sum(1).float().mean() == pytest.approx(sae.mean_active)
    assert sae.mean_active == pytest.approx(CONFIG.k, abs=0.01)
    alone = sae.dictionary.select(torch.tensor([3])).encode(residuals) > 0
    assert torch.equal(alone[:, 0], fired[:, 3])


def test_training_again_gives_the_same_sae_and_reports_progress() -> None:
    residuals, _ = make_residuals(300)
    shares: list[float] = []
    first, second = (train_response_sae(residuals, CONFIG, shares.append) for _ in range(2))
    assert torch.equal(first.dictionary.encoder, second.dictionary.encoder)
    assert shares[-1] == 1.0
    assert shares == sorted(shares[: len(shares) // 2]) * 2


def test_more_latents_than_the_responses_need_do_not_break_training() -> None:
    residuals, _ = make_residuals(40)
    sae = train_response_sae(residuals, ResponseSaeConfig(latents=64, k=80, steps=250), ignore_progress)
    assert sae.dictionary.encoder.isfinite().all()
    assert sae.dictionary.encoder.shape == (64, WIDTH)


def test_a_constant_coordinate_stays_finite() -> None:
    residuals, _ = make_residuals(200)
    residuals[:, 5] = 7.0
    sae = train_response_sae(residuals, CONFIG, ignore_progress)
    assert sae.dictionary.encode(residuals).isfinite().all()


def test_reads_its_configuration_from_a_report() -> None:
    stored = {"latents": 32, "k": 4, "steps": 10, "batch": 8, "seed": 3, "dead": 0, "mean_active": 4.0}
    assert read_sae_config({"response_sae": stored}) == ResponseSaeConfig(32, 4, 10, 8, 3)
    assert read_sae_config({}) == ResponseSaeConfig()
