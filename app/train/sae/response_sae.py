"""Trains a sparse autoencoder of responses: its input is the pooled residual that the reward model reads.

A latent of an SAE of single tokens says something about a token. A latent of this one says something about
a response as a whole, and 128 of them by default describe the responses to a task. It is a TopK SAE on
standardised inputs. Afterwards a common threshold replaces the selection of the k largest activations, so
that each latent can be computed alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from app.reward.directions import Dictionary

LEARNING_RATE = 1e-3
COOLDOWN_SHARE = 0.2
"""Share of the steps, at the end, over which the learning rate falls to 0."""
MAX_IDLE_STEPS = 200
"""Steps without an activation after which a latent counts as dead and is trained on what is left over."""
MAX_REVIVED = 64
"""Largest number of dead latents that are trained on one response's remaining error."""
REVIVAL_WEIGHT = 1 / 32
MIN_DEVIATION = 1e-6
PROGRESS_STEPS = 50


@dataclass(frozen=True, slots=True)
class ResponseSaeConfig:
    """Size and training of an SAE of responses: `k` latents are active in a response on average.

    `candidates` is how many are trained with different seeds, of which the best is kept.
    """

    latents: int = 128
    k: int = 8
    steps: int = 1500
    batch: int = 512
    seed: int = 0
    candidates: int = 4


@dataclass(frozen=True, slots=True)
class ResponseSae:
    """A trained SAE of responses: its latents, which encode raw pooled residuals, and its quality.

    `explained_variance` is that of the TopK reconstruction of the standardised training inputs, `mean_active`
    the mean number of active latents, `dead` the number of latents that no training response activates.
    """

    dictionary: Dictionary
    explained_variance: float
    mean_active: float
    dead: int


@dataclass(slots=True)
class Parameters:
    """Encoder (F, D), bias (F), decoder (F, D) with rows of norm 1, and center (D) of standardised inputs."""

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    center: Tensor

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the latents before the k largest are selected, (B, F)."""
        return (x - self.center) @ self.encoder.T + self.bias

    def tensors(self) -> list[Tensor]:
        """Return the trained tensors."""
        return [self.encoder, self.bias, self.decoder, self.center]


def read_sae_config(results: Mapping[str, Any]) -> ResponseSaeConfig:
    """Return the configuration that a report stores, or the default one if it stores none."""
    stored = results.get("response_sae", {})
    names = (field.name for field in fields(ResponseSaeConfig))
    return ResponseSaeConfig(**{name: stored[name] for name in names if name in stored})


def train_response_sae(
    residuals: Tensor, config: ResponseSaeConfig, progress: Callable[[float], None]
) -> ResponseSae:
    """Train an SAE on pooled residuals (M, D); the result depends on them and the configuration alone."""
    mean, deviation = residuals.mean(0), residuals.std(0).clamp(min=MIN_DEVIATION)
    x = (residuals - mean) / deviation
    parameters = _initialise(x, config)
    _optimise(parameters, x, config, progress)
    with torch.no_grad():
        preactivations = parameters.preactivations(x)
        activations = _keep_largest(preactivations, config.k)
        threshold = _find_threshold(preactivations, config.k)
        error = x - activations @ parameters.decoder - parameters.center
        fired = preactivations > threshold
        return ResponseSae(
            _build_dictionary(parameters, threshold, mean, deviation),
            1 - float(error.square().sum() / (x - x.mean(0)).square().sum()),
            float(fired.sum(1).float().mean()),
            int((~fired.any(0)).sum()),
        )


def _initialise(x: Tensor, config: ResponseSaeConfig) -> Parameters:
    generator = torch.Generator().manual_seed(config.seed)
    decoder = normalize(torch.randn(config.latents, x.shape[1], generator=generator), dim=1)
    tensors = (decoder.clone(), torch.zeros(config.latents), decoder, x.mean(0))
    return Parameters(*(tensor.requires_grad_() for tensor in tensors))


def _optimise(
    parameters: Parameters, x: Tensor, config: ResponseSaeConfig, progress: Callable[[float], None]
) -> None:
    """Train the parameters in place."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.Adam(parameters.tensors(), lr=LEARNING_RATE)
    variance = (x - x.mean(0)).square().sum(1).mean()
    idle_steps = torch.zeros(config.latents)
    for step in range(config.steps):
        remaining = (config.steps - step) / config.steps
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, remaining / COOLDOWN_SHARE)
        rows = torch.randint(len(x), (config.batch,), generator=generator)
        loss, fired = _compute_loss(parameters, x[rows], config.k, idle_steps > MAX_IDLE_STEPS)
        idle_steps = torch.where(fired, 0.0, idle_steps + 1)
        optimizer.zero_grad()
        (loss / variance).backward()  # type: ignore[no-untyped-call] # torch does not annotate it
        optimizer.step()
        with torch.no_grad():
            parameters.decoder /= parameters.decoder.norm(dim=1, keepdim=True)
        if step % PROGRESS_STEPS == 0:
            progress(step / config.steps)
    progress(1.0)


def _compute_loss(parameters: Parameters, x: Tensor, k: int, is_dead: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reconstruction error, and which latents were active.

    Dead latents are trained to reconstruct the error, so that they become active again.
    """
    preactivations = parameters.preactivations(x)
    activations = _keep_largest(preactivations, k)
    error = x - activations @ parameters.decoder - parameters.center
    loss = error.square().sum(1).mean()
    if is_dead.any():
        among_dead = torch.where(is_dead, preactivations, -torch.inf)
        revived = _keep_largest(among_dead, min(MAX_REVIVED, int(is_dead.sum())))
        loss = loss + REVIVAL_WEIGHT * (error.detach() - revived @ parameters.decoder).square().sum(1).mean()
    return loss, (activations > 0).any(0)


def _keep_largest(preactivations: Tensor, k: int) -> Tensor:
    """Return the k largest activations of each row if they are positive; zero for the others."""
    largest = preactivations.topk(min(k, preactivations.shape[1]), dim=1)
    return torch.zeros_like(preactivations).scatter(1, largest.indices, largest.values.relu())


def _find_threshold(preactivations: Tensor, k: int) -> float:
    """Return the threshold that k activations a row exceed on average."""
    count = min(k * len(preactivations), preactivations.numel() - 1)
    return float(preactivations.flatten().topk(count + 1).values[-1].clamp(min=0))


def _build_dictionary(
    parameters: Parameters, threshold: float, mean: Tensor, deviation: Tensor
) -> Dictionary:
    """Return the latents as functions of raw residuals.

    The projection of a raw residual on a direction is that of the standardised one on the decoder vector, up
    to a constant and a factor. So decoder vectors are divided by the standard deviations.
    """
    encoder = parameters.encoder / deviation
    bias = parameters.bias - parameters.encoder @ parameters.center - encoder @ mean
    return Dictionary(
        encoder, bias, torch.full_like(bias, threshold), normalize(parameters.decoder / deviation, dim=1)
    )
