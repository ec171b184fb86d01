"""Evidence: strongest responses, near misses and absent ones of the naming prompts, words, decided pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.errors import DataError
from app.reward.reward_model import RewardModel
from app.settings import Settings
from app.train.names import jobs
from app.train.names.evidence import (
    NUM_STRONGEST,
    Evidence,
    evidence_folder,
    find_decided_pairs,
    load_evidence,
)
from app.train.names.responses import ResponseTable
from tests.support import named_models


@pytest.fixture
def evidence(named_settings: Settings) -> Evidence:
    return jobs.read_evidence(named_models.load_model(named_settings), named_settings)


@pytest.fixture
def table(named_settings: Settings, named_model: RewardModel) -> ResponseTable:
    return ResponseTable.load(evidence_folder(named_settings.cache, named_models.NAME), named_model)


def test_every_feature_with_a_sign_has_evidence(evidence: Evidence, named_model: RewardModel) -> None:
    signed = {feature.latent: feature.sign for feature in named_model.features if feature.sign}
    assert {feature.latent: feature.sign for feature in evidence.features} == signed


def test_strongest_responses_fire_and_absent_ones_do_not(
    evidence: Evidence, table: ResponseTable, named_model: RewardModel
) -> None:
    rows = {(text.pair, text.preferred): i for i, text in enumerate(table.texts)}
    for feature in evidence.features:
        k = named_model.index_by_latent[feature.latent]
        indices = {
            kind: [rows[c.text.pair, c.text.preferred] for c in getattr(feature, kind)]
            for kind in ("strongest", "near_misses", "absent")
        }
        assert 0 < len(indices["strongest"]) <= NUM_STRONGEST
        assert table.fired[indices["strongest"], k].all()
        assert not table.fired[indices["near_misses"] + indices["absent"], k].any()
        used = [i for kind in indices.values() for i in kind]
        assert not table.is_tested[used].any()
        strongest = [table.texts[i].group for i in indices["strongest"]]
        assert len(set(strongest)) == len(strongest)
        assert not set(strongest) & {table.texts[i].group for i in indices["absent"]}
        first = indices["strongest"][0]
        naming = np.flatnonzero(table.fired[:, k] & ~table.is_tested)
        assert table.projections[first, k] == table.projections[naming, k].max()
        assert feature.strongest[0].projection == pytest.approx(table.projections[first, k], abs=0.01)
        for context in feature.strongest:
            assert context.words
            assert all(word in context.text.response for word in context.words)


def test_decided_pairs_change_their_order_without_the_feature(
    table: ResponseTable, named_model: RewardModel
) -> None:
    rng = np.random.default_rng(0)
    varied = replace(table, projections=rng.normal(size=table.projections.shape))
    decided = find_decided_pairs(named_model, varied)
    assert sum(map(len, decided)) > 10
    x = torch.from_numpy(varied.projections)
    for k, rows in enumerate(decided):
        removed = x.clone()
        removed[:, k] = 0
        for row in rows:
            margins = [
                float(named_model.head.score_members(inputs[2 * row : 2 * row + 2]).mean(1).diff())
                for inputs in (x, removed)
            ]
            assert margins[0] * margins[1] < 0


def test_snippets_are_kept_only_if_they_are_asked_for(
    named_settings: Settings, named_model: RewardModel
) -> None:
    assert all(feature.snippets == () for feature in named_model.features)
    assert jobs.keep_snippets(named_models.NAME, 2, named_settings)
    kept = named_models.load_model(named_settings)
    assert all(len(feature.snippets) == 2 for feature in kept.features if feature.sign)
    jobs.keep_snippets(named_models.NAME, 0, named_settings)
    assert all(feature.snippets == () for feature in named_models.load_model(named_settings).features)


def test_without_evidence_the_error_says_how_to_make_it(
    named_settings: Settings, named_model: RewardModel
) -> None:
    folder = evidence_folder(named_settings.cache, "unknown")
    for load in (load_evidence, ResponseTable.load):
        with pytest.raises(DataError, match="sparserm features evidence unknown PAIRS"):
            load(folder, named_model)


def test_evidence_of_other_features_is_refused(named_settings: Settings, named_model: RewardModel) -> None:
    folder = evidence_folder(named_settings.cache, named_models.NAME)
    dictionary = replace(named_model.dictionary, directions=-named_model.dictionary.directions)
    other = replace(named_model, dictionary=dictionary)
    for load in (load_evidence, ResponseTable.load):
        with pytest.raises(DataError, match="evidence is of other features"):
            load(folder, other)
    refitted = replace(named_model, head=replace(named_model.head, w2=named_model.head.w2 * 2))
    assert load_evidence(folder, refitted).features
