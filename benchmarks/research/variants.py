"""Variants of the method that only the ablation compares; each returns its margins on the test pairs."""

import torch
from torch import Tensor

from app.evaluate.baselines import linear_probe_margins
from app.train.head.baselines import ComparisonData, train_on_projections


def train_on_selected_directions(data: ComparisonData) -> Tensor:
    """Train the method itself: a head on projections on the selected directions."""
    return train_on_projections(data, _select_directions(data))


def train_on_random_latents(data: ComparisonData) -> Tensor:
    """Train the same head on random directions of the dictionary instead of selected ones."""
    generator = torch.Generator().manual_seed(data.config.seed)
    directions = data.dictionary.directions
    latents = torch.randperm(len(directions), generator=generator)[: 2 * data.k]
    return train_on_projections(data, directions[latents].cpu())


def train_linear_probe_on_selected(data: ComparisonData) -> Tensor:
    """Train a logistic regression on the projections that the method's head uses."""
    basis, (train, test) = _select_directions(data), data.residuals
    return linear_probe_margins(train @ basis.T, data.groups, test @ basis.T)


def _select_directions(data: ComparisonData) -> Tensor:
    return data.dictionary.select(data.select_latents()).orthogonalize().directions.cpu()
