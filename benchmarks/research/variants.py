"""Variants of the method that only the ablation compares; each returns its margins on the test pairs."""

import torch
from torch import Tensor

from app.evaluate.baselines import linear_probe_margins
from app.train.head.baselines import ComparisonData, train_on_projections
from app.train.head.linear import LinearHeadConfig, append_orthogonal


def train_method(data: ComparisonData) -> Tensor:
    """Train the method itself: a head on the selected directions, and a linear one on the rest as well."""
    selection, dictionary = data.select()
    directions, signs = dictionary.directions, selection.signs
    if isinstance(data.config, LinearHeadConfig):
        directions, signs = append_orthogonal(directions, signs)
    return train_on_projections(data, directions, signs)


def train_on_random_latents(data: ComparisonData) -> Tensor:
    """Train the same head on random directions of the dictionary instead of selected ones."""
    generator = torch.Generator().manual_seed(data.config.seed)
    directions = data.latents.dictionary.directions.cpu()
    latents = torch.randperm(len(directions), generator=generator)[: 2 * data.k]
    return train_on_projections(data, directions[latents], data.find_signs(directions[latents]))


def train_linear_probe_on_selected(data: ComparisonData) -> Tensor:
    """Train a logistic regression on the projections that the method's head uses."""
    (_, dictionary), (train, test) = data.select(), data.residuals
    basis = dictionary.directions
    return linear_probe_margins(train @ basis.T, data.groups, test @ basis.T)
