"""The rewards of turns: those of the conversation cut after each turn, from one forward pass; they sum."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.backbone.flex_attention import FlexAttentionMask
from app.backbone.packing import pack
from app.backbone.prefix_cache import PrefixCache
from app.backbone.runtime.cuda_graphs import CudaGraphRunner
from app.errors import NonFiniteScore
from app.reward import bundle, loading
from app.reward.engine import Engine
from app.reward.explanation.contributions import compute_changes
from app.scores import Score, ScoredItem, ScoredTurn
from app.settings import Settings
from app.types import Explain, Item, Message, Profile, ScoreJob, ScoreOptions
from tests.support import tiny

TURNS = ScoreOptions(tuple(tiny.MODELS), Explain.TURNS, top_k=tiny.K)
FEATURES = replace(TURNS, explain=Explain.FEATURES)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a models folder for each architecture."""
    settings = tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)
    (settings.models_dir / "composites.toml").write_text(tiny.COMPOSITES)
    return settings


@pytest.fixture
def engine(settings: Settings) -> Engine:
    """An engine with an empty prefix cache."""
    return loading.load_engine(settings, lambda *_: None)


def make_conversation(turns: int, seed: int = 0) -> Item:
    """Return an item with a system message, `turns` questions and answers, the last one as the response."""
    rng = random.Random(seed)
    *messages, last = (
        Message(role, " ".join(rng.choices(tiny.WORDS, k=rng.randint(1, 8))))
        for role in ("system", *("user", "assistant") * turns)
    )
    return Item(tuple(messages), last.content)


def cut_conversations(item: Item) -> list[Item]:
    """Return the conversation cut after each turn of the assistant, as items; the last is the item itself."""
    messages = (*item.messages, Message("assistant", item.response))
    return [
        Item(messages[:index], message.content)
        for index, message in enumerate(messages)
        if message.role == "assistant"
    ]


def score(engine: Engine, items: list[Item], options: ScoreOptions = TURNS) -> list[tuple[Score, ...]]:
    return tiny.score_items(engine, items, options)


def turn_rewards(scores: tuple[Score, ...]) -> list[list[float]]:
    return [[turn.reward for turn in score.turns] for score in scores]


def rewards_of_cuts(engine: Engine, item: Item, options: ScoreOptions) -> list[list[float]]:
    """The rewards of the cut conversations, each scored as an item of its own: models x turns."""
    scores = [score(engine, [cut], options)[0] for cut in cut_conversations(item)]
    return [[scored.reward for scored in column] for column in zip(*scores, strict=True)]


def latents_of(engine: Engine) -> dict[str, float]:
    """Factors that steer two features of alpha."""
    first, second, *_ = engine.models["alpha"].features
    return {str(first.latent): 0.0, str(second.latent): 3.0}


OPTIONS: dict[str, Callable[[Engine], ScoreOptions]] = {
    "plain": lambda _: FEATURES,
    "length control": lambda _: replace(FEATURES, length_control=True),
    "steering": lambda engine: replace(FEATURES, steer=latents_of(engine)),
    "composites": lambda _: replace(FEATURES, models=tiny.COMPOSITE_NAMES),
    "composites, length control": lambda _: replace(
        FEATURES, models=tiny.COMPOSITE_NAMES, length_control=True
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_turn_has_the_reward_of_the_conversation_cut_after_it(engine: Engine, name: str) -> None:
    options = OPTIONS[name](engine)
    for seed in range(3):
        item = make_conversation(5, seed)
        (scores,) = score(engine, [item], replace(options, explain=Explain.TURNS))
        expected = rewards_of_cuts(engine, item, options)
        assert np.allclose(turn_rewards(scores), expected, atol=TOLERANCE)
        assert [turn.message for turn in scores[0].turns] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("name", OPTIONS)
def test_changes_sum_to_the_reward_after_every_turn(engine: Engine, name: str) -> None:
    options = replace(OPTIONS[name](engine), explain=Explain.TURNS)
    for scores in score(engine, [make_conversation(count, count) for count in range(1, 6)], options):
        for scored in scores:
            total = scored.baseline
            for turn in scored.turns:
                total += turn.change
                assert turn.reward == pytest.approx(total + turn.length_correction - turn.penalty, abs=1e-9)
            assert scored.turns[-1].reward == scored.reward
            assert scored.turns[-1].uncertainty == scored.uncertainty
            assert scored.turns[-1].length_correction == scored.length_correction
            assert scored.turns[-1].penalty == scored.penalty
            assert total + scored.length_correction - scored.penalty == pytest.approx(scored.reward, abs=1e-9)


def test_turns_change_nothing_else_in_a_score(engine: Engine) -> None:
    items = [make_conversation(4, seed) for seed in range(3)]
    for with_turns, without in zip(score(engine, items), score(engine, items, FEATURES), strict=True):
        assert [scored.features for scored in with_turns] == [scored.features for scored in without]
        assert [scored.reward for scored in with_turns] == [scored.reward for scored in without]
        assert all(scored.turns == () for scored in without)


def test_turns_do_not_depend_on_the_batch(engine: Engine) -> None:
    items = [make_conversation(random.Random(seed).randint(1, 6), seed) for seed in range(12)]
    alone = [turn_rewards(score(engine, [item])[0]) for item in items]
    engine.prefix_cache = PrefixCache(0)
    together = [turn_rewards(scores) for scores in score(engine, items)]
    for expected, in_batch in zip(alone, together, strict=True):
        assert np.allclose(in_batch, expected, atol=TOLERANCE)


def test_turns_are_computed_once_for_responses_to_one_conversation(engine: Engine) -> None:
    conversation = make_conversation(5)
    items = [replace(conversation, response=f"{word} glass") for word in tiny.WORDS]
    encoded = engine.encode(items)
    results = engine.score([ScoreJob(item, TURNS) for item in encoded])
    computed = sum(result.computed_tokens for result in results if isinstance(result, ScoredItem))
    prompt = encoded[0].response_start
    assert computed <= prompt + sum(len(item.ids) - prompt for item in encoded)
    expected = [turn_rewards(score(engine, [item])[0]) for item in items]
    for result, rewards in zip(results, expected, strict=True):
        assert isinstance(result, ScoredItem)
        assert np.allclose(turn_rewards(result.scores), rewards, atol=TOLERANCE)


def test_a_cached_conversation_is_used_up_to_its_first_turn(engine: Engine) -> None:
    opening = Message("user", "amber river stone " * 8)
    conversation = make_conversation(4)
    item = replace(conversation, messages=(opening, *conversation.messages[2:]))
    (encoded,) = engine.encode([item])
    first_turn = encoded.earlier_turns[0].start
    before = score(engine, [item])[0]
    with_turns, without = (engine.score([ScoreJob(encoded, options)])[0] for options in (TURNS, FEATURES))
    assert isinstance(with_turns, ScoredItem)
    assert isinstance(without, ScoredItem)
    assert with_turns.computed_tokens == len(encoded.ids) - first_turn
    assert without.computed_tokens == len(encoded.ids) - encoded.response_start
    assert np.allclose(turn_rewards(with_turns.scores), turn_rewards(before), atol=TOLERANCE)


def test_jobs_with_and_without_turns_share_a_batch_and_the_cache(engine: Engine, settings: Settings) -> None:
    uncached = loading.load_engine(settings.model_copy(update={"prefix_cache_mib": 0}), lambda *_: None)
    rng = random.Random(5)
    for _ in range(8):
        conversations = [make_conversation(rng.randint(2, 5), rng.randint(0, 3)) for _ in range(6)]
        items = [replace(item, response=rng.choice(tiny.WORDS)) for item in conversations]
        items += [rng.choice(cut_conversations(item)) for item in items]
        jobs = [ScoreJob(item, rng.choice([TURNS, FEATURES])) for item in engine.encode(items)]
        for from_cache, expected in zip(engine.score(jobs), uncached.score(jobs), strict=True):
            assert isinstance(from_cache, ScoredItem)
            assert isinstance(expected, ScoredItem)
            for cached, computed in zip(from_cache.scores, expected.scores, strict=True):
                assert cached.reward == pytest.approx(computed.reward, abs=TOLERANCE)
                assert turn_rewards((cached,)) == [
                    pytest.approx(rewards, abs=TOLERANCE) for rewards in turn_rewards((computed,))
                ]


def test_a_job_with_turns_leaves_the_cache_to_jobs_with_other_prompts(engine: Engine) -> None:
    other = tiny.make_item("thunder paper glass " * 10, "violet")
    item = make_conversation(4)
    score(engine, [other, item], FEATURES)
    (encoded, encoded_other) = engine.encode([item, other])
    _, result = engine.score([ScoreJob(encoded, TURNS), ScoreJob(encoded_other, FEATURES)])
    assert isinstance(result, ScoredItem)
    assert result.computed_tokens == len(encoded_other.ids) - encoded_other.response_start


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_attention_and_the_graphs_of_a_gpu_give_turns_the_same_rewards(engine: Engine) -> None:
    items = [make_conversation(random.Random(seed).randint(2, 5), seed) for seed in range(4)]
    expected = [turn_rewards(scores) for scores in score(engine, items)]
    engine.backbone.mask_type = FlexAttentionMask
    with_flex_attention = [turn_rewards(scores) for scores in score(engine, items)]
    engine.backbone.cuda_graphs = CudaGraphRunner(engine.backbone.layers, engine.backbone.embed)
    with_graphs = [turn_rewards(scores) for scores in score(engine, items)]
    assert engine.backbone.cuda_graphs.captured_sizes
    for plain, with_flex, with_graph in zip(expected, with_flex_attention, with_graphs, strict=True):
        assert np.allclose(plain, with_flex, atol=TOLERANCE)
        assert np.allclose(plain, with_graph, atol=TOLERANCE)


def test_turns_that_truncation_has_cut_are_left_out(engine: Engine) -> None:
    item = make_conversation(5, seed=3)
    (encoded,) = engine.encode([item])
    messages = [turn.message for turn in encoded.earlier_turns]
    assert not encoded.truncated
    engine.text.max_tokens = len(encoded.ids) // 2
    (truncated,) = engine.encode([item])
    kept = [turn.message for turn in truncated.earlier_turns]
    assert truncated.truncated
    assert 0 < len(kept) < len(messages)
    assert kept == messages[-len(kept) :]
    (result,) = engine.score([ScoreJob(truncated, TURNS)])
    assert isinstance(result, ScoredItem)
    for scored in result.scores:
        assert [turn.message for turn in scored.turns] == [*kept, len(item.messages)]
        total = scored.baseline + sum(turn.change for turn in scored.turns)
        assert total == pytest.approx(scored.reward, abs=1e-9)


def test_the_turns_of_a_profile_are_scored_with_the_profile(engine: Engine) -> None:
    profile = Profile(steer=latents_of(engine), length_control=True)
    engine.models["alpha"] = replace(engine.models["alpha"], profiles={"strict": profile})
    item = make_conversation(4)
    options = replace(TURNS, models=("alpha@strict",))
    (scores,) = score(engine, [item], options)
    expected = rewards_of_cuts(engine, item, replace(options, explain=Explain.FEATURES))
    assert np.allclose(turn_rewards(scores), expected, atol=TOLERANCE)
    assert all(turn.length_correction for turn in scores[0].turns)


def test_a_saved_model_gives_turns_the_same_rewards(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    reloaded = {}
    for name in tiny.MODELS:
        bundle.save_bundle(bundle.load_bundle(settings.models_dir / name), tmp_path / name)
        reloaded[name] = bundle.load_bundle(tmp_path / name)
    before = score(engine, [make_conversation(4)])[0]
    after = score(Engine(engine.backbone, engine.text, reloaded), [make_conversation(4)])[0]
    assert turn_rewards(before) == turn_rewards(after)


def test_an_item_with_a_turn_that_overflows_fails(engine: Engine) -> None:
    (encoded,) = engine.encode([make_conversation(2)])
    model = engine.models["gamma"]
    engine.backbone.embedding.weight.data *= 1e18
    residuals = tiny.compute_residuals(engine.backbone, pack([encoded.ids]), model.card.layer)
    turn, response = (residuals[end - 1] for end in (encoded.earlier_turns[0].end, encoded.response_end))
    response = torch.nn.functional.normalize(response, dim=0)
    orthogonal = turn - turn @ response * response
    direction = orthogonal / orthogonal.norm() * (6e38 / float(orthogonal.norm()))
    directions = direction.expand_as(model.dictionary.directions)
    engine.models["gamma"] = replace(model, dictionary=replace(model.dictionary, directions=directions))
    gamma = replace(FEATURES, models=("gamma",))
    (finite,) = engine.score([ScoreJob(encoded, gamma)])
    (failed,) = engine.score([ScoreJob(encoded, replace(gamma, explain=Explain.TURNS))])
    assert isinstance(finite, ScoredItem)
    assert isinstance(failed, NonFiniteScore)


def test_a_conversation_without_earlier_turns_has_one_turn(engine: Engine) -> None:
    for scored in score(engine, [tiny.make_item("amber river", "quiet stone")])[0]:
        (turn,) = scored.turns
        assert (turn.message, turn.reward) == (1, scored.reward)
        assert turn.change == pytest.approx(scored.reward - scored.baseline, abs=1e-9)


def test_changes_are_those_without_length_correction_and_penalty() -> None:
    turns = [ScoredTurn(1, 2.0, 0.1, 0.5, 0.25), ScoredTurn(3, 1.0, 0.1, -0.5)]
    assert [turn.change for turn in compute_changes(0.75, turns)] == [1.0, -0.25]
    assert compute_changes(0.75, []) == ()
