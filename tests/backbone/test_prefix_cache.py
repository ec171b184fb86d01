"""The prefix cache saves computation, changes no reward and stays within its size."""

import random

import numpy as np
import pytest
import torch

from app.backbone.packing import TokenIds, pack
from app.backbone.prefix_cache import MIN_PREFIX_TOKENS, CachedPrefix, PrefixCache, PrefixQuery
from app.reward import loading
from app.reward.engine import Engine
from app.scores import ScoredItem
from app.settings import Settings
from app.types import Explain, Item, Message, ScoreJob, ScoreOptions
from tests.support import tiny

ALL_MODELS = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a models folder for each architecture."""
    return tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def engine(settings: Settings) -> Engine:
    """An engine with an empty prefix cache."""
    return loading.load_engine(settings, lambda *_: None)


def score(engine: Engine, items: list[Item], options: ScoreOptions = ALL_MODELS) -> list[ScoredItem]:
    results = engine.score([ScoreJob(encoded, options) for encoded in engine.encode(items)])
    return [result for result in results if isinstance(result, ScoredItem)]


def rewards(scored_items: list[ScoredItem]) -> list[list[float]]:
    return [[score.reward for score in scored.scores] for scored in scored_items]


def make_responses(prompt: str, count: int) -> list[Item]:
    return [tiny.make_item(prompt, f"{word} glass {word}") for word in tiny.WORDS[:count]]


def test_a_prompt_is_computed_once_for_responses_scored_one_by_one(engine: Engine) -> None:
    items = make_responses("amber river stone " * 4, 6)
    prompt_length = engine.encode(items)[0].response_start
    computed = [score(engine, [item])[0].computed_tokens for item in items]
    lengths = [len(encoded.ids) for encoded in engine.encode(items)]
    assert computed == [lengths[0], *(length - prompt_length for length in lengths[1:])]


def test_the_cache_changes_no_reward(settings: Settings, engine: Engine) -> None:
    uncached = loading.load_engine(settings.model_copy(update={"prefix_cache_mib": 0}), lambda *_: None)
    rng = random.Random(1)
    system = "seven maple orbit violet "
    items = [
        tiny.make_item(system * rng.randint(1, 3) + rng.choice(tiny.WORDS), f"{rng.choice(tiny.WORDS)} glass")
        for _ in range(40)
    ]
    for start in range(0, 40, 5):
        batch = items[start : start + rng.randint(1, 5)]
        assert np.allclose(rewards(score(engine, batch)), rewards(score(uncached, batch)), atol=TOLERANCE)
    assert score(engine, items)[0].computed_tokens < len(engine.encode(items)[0].ids)


def test_a_response_that_is_part_of_a_cached_prompt_is_computed(engine: Engine) -> None:
    question = Message("user", "quiet lantern seven maple orbit")
    turn = Message("assistant", "river stone amber " * 3)
    follow_up = Item((question, turn, Message("user", "orbit")), "violet")
    for ending in tiny.WORDS:
        response = Item((question,), "river stone amber " * 2 + ending)
        expected = rewards(score(engine, [response]))
        score(engine, [follow_up])
        batch = [response, follow_up, *tiny.random_items(12)]
        assert np.allclose(rewards(score(engine, batch)[:1]), expected, atol=TOLERANCE)


def test_entries_with_fewer_layers_are_not_used_for_deeper_models(settings: Settings, engine: Engine) -> None:
    items = make_responses("quiet lantern seven " * 4, 2)
    shallow = ScoreOptions(("gamma",))
    score(engine, items[:1], shallow)
    fresh = loading.load_engine(settings, lambda *_: None)
    assert np.allclose(rewards(score(engine, items)), rewards(score(fresh, items)), atol=TOLERANCE)
    assert score(engine, items[1:], shallow)[0].computed_tokens < 20


def test_non_finite_entries_are_not_stored(engine: Engine) -> None:
    items = make_responses("paper thunder orbit " * 4, 3)
    expected = rewards(score(engine, items))
    engine.prefix_cache = PrefixCache(2**20)
    poisoned, *rest = engine.encode(items)
    weight = engine.backbone.embedding.weight
    token = poisoned.ids[poisoned.response_start]
    healthy = weight[token].clone()
    weight[token] = float("nan")
    assert not isinstance(engine.score([ScoreJob(poisoned, ALL_MODELS)])[0], ScoredItem)
    weight[token] = healthy
    assert np.allclose(rewards(score(engine, items)), expected, atol=TOLERANCE)
    assert len(rest) == 2


def test_the_cache_is_bounded_and_evicts_the_least_recently_used_entry() -> None:
    cache = PrefixCache(10 * MIN_PREFIX_TOKENS * 4)
    for first in range(8):
        store(cache, (first,) * MIN_PREFIX_TOKENS, 2)
    cached = [bool(look_up(cache, (first,) * MIN_PREFIX_TOKENS)) for first in range(8)]
    assert cached == [False] * 3 + [True] * 5
    store(cache, (3,) * MIN_PREFIX_TOKENS, 2)
    look_up(cache, (3,) * MIN_PREFIX_TOKENS)
    store(cache, (9,) * MIN_PREFIX_TOKENS, 2)
    assert look_up(cache, (3,) * MIN_PREFIX_TOKENS)
    assert not look_up(cache, (4,) * MIN_PREFIX_TOKENS)
    store(cache, (1,) * MIN_PREFIX_TOKENS * 20, 2)
    assert not look_up(cache, (1,) * MIN_PREFIX_TOKENS * 20)


def test_a_cached_prompt_serves_other_prompts_up_to_where_they_differ() -> None:
    cache = PrefixCache(2**20)
    store(cache, tuple(range(40)), 2)
    prefixes = look_up(cache, (*range(30), 99, 98), tuple(range(20)), tuple(range(MIN_PREFIX_TOKENS - 1)))
    assert [len(prefix.ids) for prefix in prefixes] == [20, 30]
    assert prefixes[0].kv.shape[1] == 20
    assert not look_up(cache, tuple(range(40)), num_layers=3)


def test_no_prefix_holds_a_token_that_an_item_of_the_batch_reads() -> None:
    cache = PrefixCache(2**20)
    first, other = tuple(range(40)), (99, *range(40))
    for ids in (first, other):
        store(cache, ids, 2)
    items = [
        PrefixQuery((*first, 50), 40), PrefixQuery((*range(35), 77), 25), PrefixQuery((9, 9), 0),
        PrefixQuery((*other, 50), 41),
    ]  # fmt: skip
    prefixes = cache.lookup(items, 2).prefixes
    assert [prefix.ids for prefix in prefixes] == [first[:25], other]
    assert [prefix.kv.shape[1] for prefix in prefixes] == [25, 41]
    assert not cache.lookup([*items, PrefixQuery((*first, 1), 0)], 2).prefixes[:-1]


def test_a_prompt_that_is_cached_but_read_is_not_stored_again() -> None:
    cache = PrefixCache(2**20)
    store(cache, tuple(range(40)), 2)
    lookup = cache.lookup([PrefixQuery(tuple(range(40)), 20)], 2)
    assert cache.find_missing(lookup, [tuple(range(40)), tuple(range(30))]) == {tuple(range(30))}


def test_cached_prefixes_are_not_computed() -> None:
    cached_prefixes = [(1, 2, 3), (1, 2, 3, 4, 5)]
    packed = pack([(1, 2, 3, 4, 5, 6), (1, 2, 3, 9), (7, 8)], cached_prefixes)
    assert sorted(packed.ids.tolist()) == [6, 7, 8, 9]
    assert packed.new_tokens == (1, 1, 2)
    token_of_row = dict(enumerate(packed.ids.tolist(), packed.num_cached_rows))
    for copy in packed.prefix_copies:
        token_of_row.update(enumerate(cached_prefixes[copy.prefix][copy.start : copy.stop], copy.row))
    for item, ids in enumerate([(1, 2, 3, 4, 5, 6), (1, 2, 3, 9), (7, 8)]):
        assert tuple(token_of_row[row] for row in packed.rows(item, 0, len(ids))) == ids


def store(cache: PrefixCache, ids: TokenIds, num_layers: int) -> None:
    lookup = cache.lookup([], num_layers)
    lookup.new_entries = {ids: torch.zeros(num_layers, len(ids), 1)}
    cache.store(lookup)


def look_up(cache: PrefixCache, *prompts: TokenIds, num_layers: int = 2) -> tuple[CachedPrefix, ...]:
    return cache.lookup([PrefixQuery((*ids, -1), len(ids)) for ids in prompts], num_layers).prefixes
