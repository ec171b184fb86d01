"""Faithfulness on tiny real models, with and without passages: removals equal those of the scoring engine."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.evaluate.audit import audit, faithfulness
from app.evaluate.audit.faithfulness import ReadResponses
from app.reward.engine import Engine
from app.reward.passages import PassageReading, PassageWeighting, ResponseSpans
from app.reward.reward_model import RewardModel
from app.scores import Score
from tests.support import spread_models, tiny
from tests.support.training_setup import ignore_progress

ITEMS = [replace(item, response=item.response.replace(" ", ". ", 3)) for item in tiny.random_items(40)]


@pytest.fixture(scope="module", params=["alpha", "delta"])
def scorer(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    """An engine with one model; delta reads passages."""
    return build_scorer(engine, request.param)


def build_scorer(engine: Engine, name: str) -> Engine:
    """Return an engine with one of the tiny models, whose rewards vary as those of a trained model do."""
    return Engine(engine.backbone, engine.text, {name: spread_models.spread(engine, name, ITEMS)})


def read(scorer: Engine) -> tuple[RewardModel, ResponseSpans, Tensor]:
    """Return the only model of an engine, and the spans of all items with their residuals."""
    ((name, model),) = scorer.models.items()
    return model, *audit.pool_spans(scorer, name, ITEMS, ignore_progress)


def score(scorer: Engine, steer: dict[str, float]) -> list[Score]:
    (model,) = scorer.models.values()
    return spread_models.score(scorer, model, ITEMS, steer)


def test_rewards_and_contributions_are_those_of_the_engine(scorer: Engine) -> None:
    responses = ReadResponses.from_residuals(*read(scorer))
    scores = score(scorer, {})
    rewards = torch.tensor([scored.reward for scored in scores]).double()
    contributions = torch.stack([torch.from_numpy(scored.contributions) for scored in scores])
    assert torch.allclose(responses.compute_rewards(), rewards, atol=1e-4)
    assert torch.allclose(responses.compute_contributions(), contributions, atol=1e-4)
    sums = contributions.sum(1) + scores[0].baseline
    assert torch.allclose(sums, rewards, atol=1e-9)


def test_a_removed_direction_is_removed_from_all_spans(scorer: Engine) -> None:
    model, spans, residuals = read(scorer)
    responses = ReadResponses.from_residuals(model, spans, residuals)
    pair = torch.tensor([[2, 11]]).expand(len(ITEMS), -1)
    steer = {str(model.features[k].latent): 0.0 for k in (2, 11)}
    expected = torch.tensor([scored.reward for scored in score(scorer, steer)]).double()
    removed = responses.remove(pair).compute_rewards()
    assert torch.allclose(removed, expected, atol=1e-4)
    assert (removed - responses.compute_rewards()).abs().max() > 0.1


def test_each_response_loses_its_own_directions_and_only_the_baseline_remains(scorer: Engine) -> None:
    responses = ReadResponses.from_residuals(*read(scorer))
    each = torch.arange(len(ITEMS))[:, None] % tiny.K
    removed = responses.remove(each).compute_rewards()
    for k in range(tiny.K):
        same = responses.remove(torch.full_like(each, k)).compute_rewards()
        assert torch.equal(removed[each[:, 0] == k], same[each[:, 0] == k])
    everything = torch.arange(tiny.K).expand(len(ITEMS), -1)
    baseline = torch.full((len(ITEMS),), score(scorer, {})[0].baseline).double()
    assert torch.allclose(responses.remove(everything).compute_rewards(), baseline, atol=1e-9)


def test_an_intervention_changes_the_residual_stream_itself(scorer: Engine) -> None:
    model, spans, residuals = read(scorer)
    responses = ReadResponses.from_residuals(model, spans, residuals)
    directions = model.dictionary.directions
    excess = (model.dictionary.project(residuals) - model.head.center).float()
    for k in (0, 7):
        changed = residuals - excess[:, k : k + 1] * directions[k]
        expected = ReadResponses.from_residuals(model, spans, changed).compute_rewards()
        actual = responses.remove_from_stream(k, directions).compute_rewards()
        assert torch.allclose(actual, expected, atol=1e-4)
        alone = responses.remove(torch.full((len(ITEMS), 1), k)).compute_rewards()
        assert (actual - alone).abs().max() > 0.01


def test_weights_are_computed_again_after_a_removal(engine: Engine) -> None:
    responses = ReadResponses.from_residuals(*read(build_scorer(engine, "delta")))
    equal = replace(responses, reading=PassageReading(PassageWeighting.EQUAL, 0.0, share=0.7))
    removed = torch.zeros(len(ITEMS), 1, dtype=torch.long)
    changes, linear = (
        each.remove(removed).compute_rewards() - each.compute_rewards() for each in (responses, equal)
    )
    assert (changes - linear).abs().max() > 0.01
    assert (responses.compute_rewards() <= equal.compute_rewards() + 1e-9).all()


@pytest.mark.parametrize("name", ["alpha", "delta"])
def test_explanations_are_faithful_on_orthonormal_directions(engine: Engine, name: str) -> None:
    model, spans, residuals = read(Engine(engine.backbone, engine.text, {name: engine.models[name]}))
    orthonormal = replace(model, dictionary=model.dictionary.orthogonalize())
    results, original_results = (
        faithfulness.evaluate_faithfulness(each, spans, residuals) for each in (orthonormal, model)
    )
    assert results["n"] == 40
    assert results["intervention_spearman"] > max(0.7, original_results["intervention_spearman"])
    assert abs(results["shuffled_head_spearman"]) < 0.5
    assert results["near_parallel_directions"] == 0
    assert results["deletion"]["largest"]["10"] > results["deletion"]["random"]["10"]
    assert results["deletion"]["largest"]["0"] == 0
    assert results["insertion"]["largest"]["0"] == pytest.approx(0, abs=1e-12)
    assert results["insertion"]["largest"]["10"] > results["insertion"]["smallest"]["10"]


def test_the_audit_of_passages_differs_from_that_of_whole_responses(engine: Engine) -> None:
    model, spans, residuals = read(build_scorer(engine, "delta"))
    whole, *_ = read(build_scorer(engine, "delta"))
    whole = replace(whole, card=replace(whole.card, passages=None))
    first = torch.arange(spans.num_responses)
    whole_spans = ResponseSpans(
        spans.starts[first], spans.ends[first], spans.response_index[first], spans.token_counts
    )
    by_passage = faithfulness.evaluate_faithfulness(model, spans, residuals)
    by_response = faithfulness.evaluate_faithfulness(whole, whole_spans, residuals[first])
    assert by_passage["n"] == by_response["n"] == 40
    for name in ("ten_largest_over_random", "cancellation", "deletion"):
        assert by_passage[name] != by_response[name]
