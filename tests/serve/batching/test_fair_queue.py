"""The order in which queued jobs are scored: fairness between requests and callers, urgent requests."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serve.batching.fair_queue import MAX_GROUP_TOKENS, FairQueue, QueuedJob
from app.serve.batching.request_context import RequestContext
from app.types import EncodedItem, ScoreJob, ScoreOptions


def queued_job(name: int, length: int = 10) -> QueuedJob:
    loop = asyncio.new_event_loop()
    try:
        return QueuedJob(
            ScoreJob(EncodedItem((name,) * length, 1), ScoreOptions(("m",))), None, loop.create_future(), 1e12
        )
    finally:
        loop.close()


def pop_all(queue: FairQueue) -> list[int]:
    order = []
    while queue.peek():
        order.append(queue.pop().job.encoded.ids[0])
    return order


def add_request(
    queue: FairQueue, caller: str, names: Sequence[int], *, urgent: bool = False
) -> list[QueuedJob]:
    jobs = [queued_job(name) for name in names]
    queue.add(jobs, RequestContext(caller, urgent=urgent))
    return jobs


def responses(prompt: int, count: int) -> list[QueuedJob]:
    """Responses of 10 tokens each to one prompt of 90 tokens."""
    loop = asyncio.new_event_loop()
    jobs = [ScoreJob(EncodedItem((prompt,) * 90 + (n,) * 10, 90), ScoreOptions(("m",))) for n in range(count)]
    loop.close()
    return [QueuedJob(job, None, loop.create_future(), 1e12) for job in jobs]


def test_responses_to_one_prompt_stay_together_up_to_the_group_limit() -> None:
    queue = FairQueue()
    for prompt in (1, 2):
        queue.add(responses(prompt, 8), RequestContext(f"caller {prompt}"))
    assert pop_all(queue) == [1] * 8 + [2] * 8
    for first, second in zip(responses(1, 8), responses(2, 8), strict=True):
        queue.add([first], RequestContext("a"))
        queue.add([second], RequestContext("b"))
    assert pop_all(queue) == [1] * 8 + [2] * 8
    queue.add(responses(1, 10_000), RequestContext("large"))
    queue.add(responses(2, 1), RequestContext("small"))
    assert pop_all(queue).index(2) <= 2 * MAX_GROUP_TOKENS / 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=12), st.randoms())
def test_new_tokens_count_every_prompt_once(sizes: list[tuple[int, int]], random: Random) -> None:
    queue = FairQueue()
    requests = [(responses(prompt, count), RequestContext(str(n))) for n, (prompt, count) in enumerate(sizes)]
    for jobs, context in requests:
        queue.add(jobs, context)
    for jobs, context in requests:
        if random.random() < 0.3:
            queue.remove(jobs, context)
    for _ in range(random.randrange(queue.num_items + 1)):
        queue.pop()
    remaining = [job for jobs, _ in requests for job in jobs if not job.dequeued]
    assert queue.num_items == len(remaining)
    assert queue.num_tokens == 100 * len(remaining)
    assert queue.num_new_tokens == 10 * len(remaining) + 90 * len({job.prompt_ids for job in remaining})


def test_requests_of_one_caller_are_scored_in_order() -> None:
    queue = FairQueue()
    for n in range(5):
        add_request(queue, "a", [n])
    assert pop_all(queue) == [0, 1, 2, 3, 4]


def test_two_large_requests_alternate_and_keep_their_own_order() -> None:
    queue = FairQueue()
    add_request(queue, "a", range(10))
    add_request(queue, "b", range(100, 110))
    order = pop_all(queue)
    assert [n for n in order if n < 100] == list(range(10))
    assert {n >= 100 for n in order[:4]} == {True, False}


def test_a_caller_with_many_requests_does_not_delay_another() -> None:
    queue = FairQueue()
    for n in range(300):
        add_request(queue, "many", [n])
    add_request(queue, "one", [1000])
    assert pop_all(queue).index(1000) <= 2


def test_an_urgent_request_comes_first_and_all_others_are_scored() -> None:
    queue = FairQueue()
    for n in range(20):
        add_request(queue, "a", [n])
    add_request(queue, "b", [100], urgent=True)
    order = pop_all(queue)
    assert order[0] == 100
    assert sorted(order) == [*range(20), 100]


def test_a_steady_stream_of_urgent_requests_starves_no_other() -> None:
    queue = FairQueue()
    add_request(queue, "normal", [7])
    for n in range(100):
        jobs = add_request(queue, "urgent", [1000 + n], urgent=True)
        if queue.pop().job.encoded.ids[0] == 7:
            return
        queue.remove(jobs, RequestContext("urgent", urgent=True))
    pytest.fail("the normal request was never scored")


def test_removed_requests_are_forgotten_and_the_heap_does_not_grow() -> None:
    queue = FairQueue()
    for n in range(100):
        jobs = add_request(queue, "a", range(50))
        assert queue.remove(jobs, RequestContext("a")) == 50
        assert queue.num_items == queue.num_tokens == 0
        assert len(queue._heap) <= 1, n  # noqa: SLF001 # its memory is what is tested
    assert queue.peek() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(1, 6)), max_size=12))
def test_every_job_is_scored_once_and_in_the_order_of_its_request(
    callers: list[tuple[str, bool, int]],
) -> None:
    queue, names = FairQueue(), iter(range(1000))
    requests = []
    for caller, urgent, size in callers:
        requests.append([next(names) for _ in range(size)])
        add_request(queue, caller, requests[-1], urgent=urgent)
    order = pop_all(queue)
    assert sorted(order) == [name for request in requests for name in request]
    for request in requests:
        assert [name for name in order if name in request] == request
