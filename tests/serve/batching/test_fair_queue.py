"""Who is next, and who is let in at all: fairness, urgency, and refusals that say when to come back."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from app.errors import InvalidInput, Overloaded
from app.serve.batching.admission import LONGEST_RETRY_S, Backlog
from app.serve.batching.fair_queue import TOGETHER, Entry, Line
from app.serve.metrics import Metrics
from app.types import EncodedItem, RequestContext, ScoreJob, ScoreOptions


def entry(name: int, length: int = 10) -> Entry:
    loop = asyncio.new_event_loop()
    try:
        return Entry(
            ScoreJob(EncodedItem((name,) * length, 1), ScoreOptions(("m",))), None, loop.create_future(), 1e12
        )
    finally:
        loop.close()


def served(line: Line) -> list[int]:
    order = []
    while line.first():
        order.append(line.pop().job.encoded.ids[0])
    return order


def joined(line: Line, caller: str, names: Sequence[int], *, urgent: bool = False) -> list[Entry]:
    entries = [entry(name) for name in names]
    line.join(entries, RequestContext(caller, urgent=urgent))
    return entries


def responses(prompt: int, count: int) -> list[Entry]:
    """To one prompt of 90 tokens, 10 each."""
    loop = asyncio.new_event_loop()
    jobs = [ScoreJob(EncodedItem((prompt,) * 90 + (n,) * 10, 90), ScoreOptions(("m",))) for n in range(count)]
    loop.close()
    return [Entry(one, None, loop.create_future(), 1e12) for one in jobs]


def test_answers_to_one_prompt_stay_together_as_far_as_a_pass_goes() -> None:
    line = Line()
    for prompt in (1, 2):
        line.join(responses(prompt, 8), RequestContext(f"caller {prompt}"))
    assert served(line) == [1] * 8 + [2] * 8
    for one, two in zip(responses(1, 8), responses(2, 8), strict=True):
        line.join([one], RequestContext("a"))
        line.join([two], RequestContext("b"))
    assert served(line) == [1] * 8 + [2] * 8
    line.join(responses(1, 10_000), RequestContext("crowd"))
    line.join(responses(2, 1), RequestContext("single"))
    assert served(line).index(2) <= 2 * TOGETHER / 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=12), st.randoms())
def test_fresh_tokens_count_every_prompt_once(requests: list[tuple[int, int]], chance: Random) -> None:
    line = Line()
    joined_in = [
        (responses(prompt, count), RequestContext(str(n))) for n, (prompt, count) in enumerate(requests)
    ]
    for entries, terms in joined_in:
        line.join(entries, terms)
    for entries, terms in joined_in:
        if chance.random() < 0.3:
            line.leave(entries, terms)
    for _ in range(chance.randrange(line.items + 1)):
        line.pop()
    left = [entry for entries, _ in joined_in for entry in entries if not entry.taken]
    assert line.items == len(left)
    assert line.tokens == 100 * len(left)
    assert line.fresh == 10 * len(left) + 90 * len({entry.prompt for entry in left})


def test_requests_of_one_caller_are_served_in_order() -> None:
    line = Line()
    for n in range(5):
        joined(line, "a", [n])
    assert served(line) == [0, 1, 2, 3, 4]


def test_two_large_requests_take_turns_and_keep_their_own_order() -> None:
    line = Line()
    joined(line, "a", range(10))
    joined(line, "b", range(100, 110))
    order = served(line)
    assert [n for n in order if n < 100] == list(range(10))
    assert {n >= 100 for n in order[:4]} == {True, False}


def test_a_caller_with_many_requests_does_not_shut_another_out() -> None:
    line = Line()
    for n in range(300):
        joined(line, "crowd", [n])
    joined(line, "one", [1000])
    assert served(line).index(1000) <= 2


def test_the_urgent_pass_and_the_others_are_served_in_the_end() -> None:
    line = Line()
    for n in range(20):
        joined(line, "a", [n])
    joined(line, "b", [100], urgent=True)
    order = served(line)
    assert order[0] == 100
    assert sorted(order) == [*range(20), 100]


def test_an_endless_stream_of_urgent_ones_starves_nobody() -> None:
    line = Line()
    joined(line, "patient", [7])
    for turn in range(100):
        entries = joined(line, "urgent", [1000 + turn], urgent=True)
        if line.pop().job.encoded.ids[0] == 7:
            return
        line.leave(entries, RequestContext("urgent", urgent=True))
    pytest.fail("never served")


def test_who_leaves_is_forgotten_and_the_heap_does_not_grow() -> None:
    line = Line()
    for n in range(100):
        entries = joined(line, "a", range(50))
        assert line.leave(entries, RequestContext("a")) == 50
        assert line.items == line.tokens == 0
        assert len(line._heap) <= 1, n  # noqa: SLF001 # its memory is what is tested
    assert line.first() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(1, 6)), max_size=12))
def test_everybody_is_served_once_and_each_request_in_its_order(asks: list[tuple[str, bool, int]]) -> None:
    line, names = Line(), iter(range(1000))
    requests = []
    for caller, urgent, size in asks:
        requests.append([next(names) for _ in range(size)])
        joined(line, caller, requests[-1], urgent=urgent)
    order = served(line)
    assert sorted(order) == [name for request in requests for name in request]
    for request in requests:
        assert [name for name in order if name in request] == request


def backlog(limit: int = 1000) -> Backlog:
    return Backlog(limit, Metrics(CollectorRegistry()))


def test_what_never_fits_is_refused_for_good_and_the_rest_for_now() -> None:
    one = backlog()
    with pytest.raises(InvalidInput, match="1001"):
        one.room(1001, RequestContext(), lambda: 0)
    with one.room(900, RequestContext(), lambda: 0):
        with pytest.raises(Overloaded):
            one.room(200, RequestContext(), lambda: 1000)
        with one.room(100, RequestContext(), lambda: 1000):
            assert one.tokens == 1000
    assert one.tokens == 0


def test_who_could_not_be_served_in_time_is_told_when_to_come_back() -> None:
    one = backlog(10**6)
    one.passed(1000, 1.0)
    with one.room(50_000, RequestContext(timeout_s=100), lambda: 0):
        with one.room(100, RequestContext(timeout_s=2), lambda: 600):
            pass
        with pytest.raises(Overloaded) as refused:
            one.room(100, RequestContext(timeout_s=2), lambda: 50_100)
        with one.room(100, RequestContext(timeout_s=100), lambda: 50_100):
            pass
    assert refused.value.retry_after_s == min(LONGEST_RETRY_S, 49)


def test_an_empty_house_takes_in_whoever_comes() -> None:
    one = backlog(10**6)
    one.passed(10, 10.0)
    with one.room(10**6, RequestContext(timeout_s=0.01), lambda: 0):
        pass


def test_a_guess_is_learnt_and_then_corrected() -> None:
    one = backlog()
    for _ in range(50):
        one.learn(10_000, 2_000)
    assert one.guess(1000) == pytest.approx(200, rel=0.05)
    with one.room(200, RequestContext(), lambda: 0) as room:
        room.correct(300)
        assert one.tokens == 300
        room.give(100)
        assert one.tokens == 200
    assert one.tokens == 0
