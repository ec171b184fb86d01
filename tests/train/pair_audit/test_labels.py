"""Suspicious labels: flipped pairs get the lowest margins, without a look at their own prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.errors import DataError
from app.train.pair_audit.labels import compute_heldout_margins
from tests.train.pair_audit.conftest import AuditedModel


def test_flipped_labels_are_found_first(audited: AuditedModel) -> None:
    flipped = np.random.default_rng(0).choice(len(audited.pairs), 20, replace=False)
    index = audited.features.response_index.clone()
    index[flipped] = index[flipped].flip(1)
    features = replace(audited.features, response_index=index)
    shares: list[float] = []
    margins = compute_heldout_margins(features, audited.model.card.layer, audited.groups, shares.append)
    assert set(np.argsort(margins)[:20]) == set(flipped)
    assert (margins[flipped] < 0).all()
    assert shares[-1] == 1.0


def test_a_pair_is_judged_by_the_other_prompts_only(audited: AuditedModel) -> None:
    layer, groups = audited.model.card.layer, audited.groups
    margins = compute_heldout_margins(audited.features, layer, groups, lambda _: None)
    own = [i for i, group in enumerate(groups) if group == groups[0]]
    index = audited.features.response_index.clone()
    index[own] = index[own].flip(1)
    flipped = compute_heldout_margins(
        replace(audited.features, response_index=index), layer, groups, lambda _: None
    )
    assert flipped[own] == pytest.approx(-margins[own])
    assert torch.isfinite(torch.from_numpy(flipped)).all()


def test_too_few_prompts_are_an_error(audited: AuditedModel) -> None:
    with pytest.raises(DataError, match="at least 5 prompts"):
        compute_heldout_margins(
            audited.features, audited.model.card.layer, ["one"] * len(audited.pairs), lambda _: None
        )
