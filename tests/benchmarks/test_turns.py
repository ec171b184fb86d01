"""All turns of a conversation cost little more than its last one."""

import pytest

from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from benchmarks import turns
from tests.support.paths import MODELS

MAX_RATIO = 1.25
"""Ten turns are measured at 1.02 to 1.05 of the last one; the rest is for other processes on the machine."""


def test_times_every_contender_in_every_round(engine: Engine) -> None:
    conversation = turns.make_conversation(2, seed=0)
    times = turns.time_turns(engine, [conversation], ("alpha",), rounds=3)
    assert {name: len(seconds) for name, seconds in times.items()} == {
        turns.LAST_TURN: 3, turns.ALL_TURNS: 3, turns.CUT_CONVERSATIONS: 3,
    }  # fmt: skip
    assert turns.compute_ratio(times, turns.LAST_TURN) == 1


@pytest.mark.real
@pytest.mark.heavy
def test_ten_turns_cost_little_more_than_the_last_one() -> None:
    settings = Settings(models_dir=MODELS, device="cpu", dtype="float32")
    engine = loading.load_engine(settings, lambda *_: None)
    conversations = [turns.make_conversation(turns.TURNS, seed=0)]
    assert len(engine.encode(conversations, truncate=False)[0].earlier_turns) == turns.TURNS - 1
    times = turns.time_turns(engine, conversations, tuple(engine.models), rounds=7)
    assert turns.compute_ratio(times, turns.ALL_TURNS) <= MAX_RATIO
