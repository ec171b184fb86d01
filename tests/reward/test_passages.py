"""Reading by passage: sentences, their weights, and exact sums."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.backbone.packing import pack
from app.errors import BundleError
from app.reward import bundle, loading, passages
from app.reward.engine import Engine
from app.reward.passages import (
    MAX_PASSAGE_TOKENS,
    MIN_PASSAGE_TOKENS,
    PassageReading,
    PassageWeighting,
)
from app.scores import Score
from app.settings import Settings
from app.types import Explain, Pooling, ScoreOptions
from tests.support import tiny

NAME = "delta"
READING = tiny.PASSAGES[NAME]
TOKENS = ScoreOptions((NAME,), Explain.TOKENS, top_k=tiny.K)
CPU = torch.device("cpu")
SPANS = [[(0, 4), (4, 12)], [], [(0, 5), (5, 9), (9, 16)]]
WORDS = "violet glass. thunder paper! river, stone copper lamp. No. ash and a long text without an end"


def score(engine: Engine, response: str, options: ScoreOptions = TOKENS) -> Score:
    (scores,) = tiny.score_items(engine, [tiny.make_item("a question", response)], options)
    return scores[0]


def split(text: str) -> list[str]:
    """Split a text as a response whose tokens are its characters."""
    spans = passages.list_passages([character in ".!?\n" for character in text])
    return [text[start:end] for start, end in spans]


def test_passages_are_sentences_and_together_the_whole_response() -> None:
    assert split("Yes it is. Why? It must be.\nOk") == ["Yes it is.", " Why?", " It must be.\nOk"]
    assert split("No. No. Never.") == ["No. No.", " Never."]
    assert split("a") == ["a"]
    assert split("a.b") == ["a.b"]
    long = split("x" * 70)
    assert [len(part) for part in long] == [32, 32, 6]
    assert [len(part) for part in split("x" * 66)] == [32, 34]
    for text in (WORDS, "x" * 99, "a. " * 40, "......"):
        assert "".join(split(text)) == text
        assert all(len(part) >= MIN_PASSAGE_TOKENS for part in split(text))
        assert all(len(part) < MAX_PASSAGE_TOKENS + MIN_PASSAGE_TOKENS for part in split(text))


def test_the_tokenizer_marks_the_tokens_that_end_sentences(engine: Engine) -> None:
    (encoded,) = engine.encode([tiny.make_item("a?", "One. Two!\nthree")])
    marks = passages.mark_sentence_ends(encoded, encoded.response_turn)
    texts = engine.text.decode(encoded.ids[encoded.response_start : encoded.response_end])
    assert marks == [any(character in ".!\n" for character in text) for text in texts]


def test_pooled_spans_are_means_of_their_rows() -> None:
    values = torch.randn(31, 5, generator=torch.Generator().manual_seed(0))
    spans = passages.build_spans([12, 3, 16], SPANS, CPU)
    passage_edges = (spans.starts[3:], spans.ends[3:])
    for start, end, pooled in zip(*passage_edges, spans.pool_passages(values), strict=True):
        assert torch.allclose(pooled, values[start:end].double().mean(0), atol=1e-12)
    assert spans.starts[:3].tolist() == [0, 12, 15]
    values[3] = torch.nan
    has_nan = spans.pool_passages(values).isnan().any(1)
    assert has_nan[0]
    assert not has_nan[spans.response_index[3:] != 0].any()
    assert spans.ends[:3].tolist() == [12, 15, 31]


@pytest.mark.parametrize("weighting", PassageWeighting)
def test_weights_sum_to_one_and_prefer_the_worst_or_the_best_spans(weighting: PassageWeighting) -> None:
    reading = replace(READING, weighting=weighting)
    spans = passages.build_spans([12, 3, 16], SPANS, CPU)
    rewards = torch.randn(len(spans.starts), generator=torch.Generator().manual_seed(1)).double()
    weights = passages.compute_span_weights(spans, rewards, reading)
    sums = spans.sum_by_response(weights, torch.ones(len(weights), 1).double())
    assert sums.flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert weights[:3].tolist() == pytest.approx([0.3, 1.0, 0.3])
    of_first = (spans.response_index == 0) & (torch.arange(len(weights)) >= 3)
    order = np.argsort(rewards[of_first].numpy())
    sizes = weights[of_first].numpy()[order]
    increasing = sizes[::-1] if weighting is PassageWeighting.WORST else sizes
    assert (np.diff(increasing) >= -1e-12).all()
    if weighting is PassageWeighting.EQUAL:
        assert np.ptp(sizes) < 1e-12


def test_a_very_sharp_softmax_is_the_minimum() -> None:
    reading = PassageReading(PassageWeighting.WORST, sharpness=100.0, share=1.0)
    spans = passages.build_spans([40], [[(start, start + 4) for start in range(0, 40, 4)]], CPU)
    rewards = torch.linspace(-3, 3, len(spans.starts), dtype=torch.float64)
    weights = passages.compute_span_weights(spans, rewards, reading)
    total = spans.sum_by_response(weights, rewards[:, None])
    assert float(total) == pytest.approx(float(rewards[1:].min()), abs=1e-3)


@pytest.mark.parametrize("weighting", PassageWeighting)
def test_credits_of_tokens_sum_to_the_reward_under_every_weighting(
    settings: Settings, weighting: PassageWeighting
) -> None:
    engine = load_with_reading(settings, replace(READING, weighting=weighting))
    whole = score(engine, WORDS)
    assert whole.tokens is not None
    total = whole.baseline + sum(token.credit for token in whole.tokens)
    assert total == pytest.approx(whole.reward, abs=1e-12)


def load_with_reading(settings: Settings, reading: PassageReading) -> Engine:
    engine = loading.load_engine(settings, lambda *_: None)
    model = engine.models[NAME]
    models = {NAME: replace(model, card=replace(model.card, passages=reading))}
    return Engine(engine.backbone, engine.text, models)


def test_passages_are_listed_by_weight_with_their_own_rewards(engine: Engine) -> None:
    result = score(engine, WORDS)
    assert 1 <= len(result.passages) <= 3
    assert result.tokens is not None
    texts = [token.text for token in result.tokens]
    ends = 0
    for passage in result.passages:
        assert passage.text == "".join(texts[passage.start : passage.end])
        assert MIN_PASSAGE_TOKENS <= passage.end - passage.start < MAX_PASSAGE_TOKENS + MIN_PASSAGE_TOKENS
        assert passage.contribution == pytest.approx(passage.weight * (passage.reward - result.baseline))
        ends = max(ends, passage.end)
    assert ends <= len(texts)
    weights = [passage.weight for passage in result.passages]
    assert weights == sorted(weights, reverse=True)


def test_a_passage_has_the_reward_that_the_mean_of_its_tokens_has(engine: Engine) -> None:
    first, *_ = score(engine, WORDS).passages
    model = engine.models[NAME]
    (encoded,) = engine.encode([tiny.make_item("a question", WORDS)])
    residuals = tiny.compute_residuals(engine.backbone, pack([encoded.ids]), model.card.layer)
    start = encoded.response_start
    pooled = model.dictionary.project(residuals[start + first.start : start + first.end]).double().mean(0)
    rewards = model.head.score_members(model.head.standardise(pooled[None]))
    assert float(rewards.mean()) == pytest.approx(first.reward, abs=1e-5)


def test_a_response_of_one_sentence_has_the_reward_of_the_whole(engine: Engine) -> None:
    model = engine.models[NAME]
    without = replace(model, card=replace(model.card, passages=None))
    other = Engine(engine.backbone, engine.text, {NAME: without})
    assert score(engine, "abcdef").passages == ()
    assert score(engine, "abcdef").reward == pytest.approx(score(other, "abcdef").reward, abs=1e-6)
    assert abs(score(engine, WORDS).reward - score(other, WORDS).reward) > 5e-5


def test_contributions_to_a_margin_sum_to_it(engine: Engine) -> None:
    chosen, rejected = score(engine, WORDS), score(engine, WORDS[::-1])
    contributions = engine.explain_margin(chosen, rejected, tiny.K)
    total = sum(contribution.contribution for contribution in contributions)
    assert total == pytest.approx(chosen.reward - rejected.reward, abs=1e-9)


def test_requests_without_explanation_get_no_passages(engine: Engine) -> None:
    assert score(engine, WORDS, ScoreOptions((NAME,), Explain.NONE)).passages == ()
    assert score(engine, WORDS, ScoreOptions(("alpha",), Explain.TOKENS)).passages == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"share": 0.0},
        {"share": 1.5},
        {"sharpness": -1.0},
        {"sharpness": float("inf")},
    ],
)
def test_readings_that_no_model_can_have_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="passage"):
        replace(READING, **changes)  # type: ignore[arg-type] # wrong values are what is tested


def test_bundles_keep_their_passages_and_refuse_other_poolings(settings: Settings, tmp_path: Path) -> None:
    model = bundle.load_bundle(settings.models_dir / NAME)
    assert model.card.passages == READING
    folder = tmp_path / NAME
    bundle.save_bundle(replace(model, card=replace(model.card, readout=Pooling.LAST)), folder)
    with pytest.raises(BundleError, match="passages need readout mean"):
        bundle.load_bundle(folder)


def test_bundles_of_the_format_before_passages_load(settings: Settings, tmp_path: Path) -> None:
    model = bundle.load_bundle(settings.models_dir / "alpha")
    folder = tmp_path / "alpha"
    bundle.save_bundle(replace(model, card=replace(model.card, schema=2)), folder)
    assert bundle.load_bundle(folder).card.passages is None
