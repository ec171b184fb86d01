"""Prompts remembered between passes: nothing is read twice, nothing changes, nothing grows."""

import random

import numpy as np
import pytest
import torch

from app.backbone.packing import TokenIds, pack
from app.backbone.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache
from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from app.types import Explain, Item, ScoredItem, ScoreJob, ScoreOptions
from tests.support import tiny

ALL = ScoreOptions(tuple(tiny.MODELS), Explain.TOKENS, top_k=tiny.K)
CLOSE = 1e-5


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Every kind of backbone."""
    return tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def engine(settings: Settings) -> Engine:
    """An engine that has not seen anything yet."""
    return loading.load_engine(settings, lambda *_: None)


def score(engine: Engine, exchanges: list[Item], ask: ScoreOptions = ALL) -> list[ScoredItem]:
    found = engine.score([ScoreJob(one, ask) for one in engine.encode(exchanges)])
    return [one for one in found if isinstance(one, ScoredItem)]


def rewards(found: list[ScoredItem]) -> list[list[float]]:
    return [[one.reward for one in scored.scores] for scored in found]


def responses(prompt: str, count: int) -> list[Item]:
    return [tiny.make_item(prompt, f"{word} glass {word}") for word in tiny.WORDS[:count]]


def test_responses_that_come_one_by_one_read_their_prompt_once(engine: Engine) -> None:
    group = responses("amber river stone " * 4, 6)
    prompt = engine.encode(group)[0].response_start
    computed = [score(engine, [one])[0].computed_tokens for one in group]
    lengths = [len(one.ids) for one in engine.encode(group)]
    assert computed == [lengths[0], *(length - prompt for length in lengths[1:])]


def test_remembering_changes_no_reward(settings: Settings, engine: Engine) -> None:
    forgetful = loading.load_engine(settings.model_copy(update={"prefix_cache_mib": 0}), lambda *_: None)
    rng = random.Random(1)
    system = "seven maple orbit violet "
    exchanges = [
        tiny.make_item(system * rng.randint(1, 3) + rng.choice(tiny.WORDS), f"{rng.choice(tiny.WORDS)} glass")
        for _ in range(40)
    ]
    for start in range(0, 40, 5):
        some = exchanges[start : start + rng.randint(1, 5)]
        assert np.allclose(rewards(score(engine, some)), rewards(score(forgetful, some)), atol=CLOSE)
    assert score(engine, exchanges)[0].computed_tokens < len(engine.encode(exchanges)[0].ids)


def test_models_of_another_depth_do_not_lend_what_they_lack(settings: Settings, engine: Engine) -> None:
    group = responses("quiet lantern seven " * 4, 2)
    shallow = ScoreOptions(("gamma",))
    score(engine, group[:1], shallow)
    fresh = loading.load_engine(settings, lambda *_: None)
    assert np.allclose(rewards(score(engine, group)), rewards(score(fresh, group)), atol=CLOSE)
    assert score(engine, group[1:], shallow)[0].computed_tokens < 20


def test_what_overflows_is_forgotten(engine: Engine) -> None:
    group = responses("paper thunder orbit " * 4, 3)
    fine = rewards(score(engine, group))
    engine.prefix_cache = PrefixCache(2**20)
    poisoned, *rest = engine.encode(group)
    weight = engine.backbone.embedding.weight
    token = poisoned.ids[poisoned.response_start]
    healthy = weight[token].clone()
    weight[token] = float("nan")
    assert not isinstance(engine.score([ScoreJob(poisoned, ALL)])[0], ScoredItem)
    weight[token] = healthy
    assert np.allclose(rewards(score(engine, group)), fine, atol=CLOSE)
    assert len(rest) == 2


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = PrefixCache(10 * MIN_PREFIX_TOKENS * 4)
    for first in range(8):
        keep(memory, (first,) * MIN_PREFIX_TOKENS, 2)
    assert [bool(memory.lookup([(first,) * MIN_PREFIX_TOKENS], 2).prefixes) for first in range(8)] == [
        False
    ] * 3 + [True] * 5
    keep(memory, (3,) * MIN_PREFIX_TOKENS, 2)
    memory.lookup([(3,) * MIN_PREFIX_TOKENS], 2)
    keep(memory, (9,) * MIN_PREFIX_TOKENS, 2)
    assert memory.lookup([(3,) * MIN_PREFIX_TOKENS], 2).prefixes
    assert not memory.lookup([(4,) * MIN_PREFIX_TOKENS], 2).prefixes
    keep(memory, (1,) * MIN_PREFIX_TOKENS * 20, 2)
    assert not memory.lookup([(1,) * MIN_PREFIX_TOKENS * 20], 2).prefixes


def test_a_beginning_is_lent_up_to_where_prompts_part() -> None:
    memory = PrefixCache(2**20)
    keep(memory, tuple(range(40)), 2)
    known = memory.lookup(
        [(*range(30), 99, 98), tuple(range(20)), tuple(range(MIN_PREFIX_TOKENS - 1))], 2
    ).prefixes
    assert [len(one.ids) for one in known] == [20, 30]
    assert known[0].kv.shape[1] == 20
    assert not memory.lookup([tuple(range(40))], 3).prefixes


def test_known_beginnings_are_not_computed() -> None:
    known = [(1, 2, 3), (1, 2, 3, 4, 5)]
    packed = pack([(1, 2, 3, 4, 5, 6), (1, 2, 3, 9), (7, 8)], known)
    assert sorted(packed.ids.tolist()) == [6, 7, 8, 9]
    assert packed.new_tokens == (1, 1, 2)
    spelled = dict(enumerate(packed.ids.tolist(), packed.num_cached_rows))
    for fill in packed.prefix_copies:
        spelled.update(enumerate(known[fill.prefix][fill.start : fill.stop], fill.row))
    for item, ids in enumerate([(1, 2, 3, 4, 5, 6), (1, 2, 3, 9), (7, 8)]):
        assert tuple(spelled[row] for row in packed.rows(item, 0, len(ids))) == ids


def keep(memory: PrefixCache, ids: TokenIds, depth: int) -> None:
    session = memory.lookup([], depth)
    session.new_entries = {ids: torch.zeros(depth, len(ids), 1)}
    memory.store(session)
