"""The batcher alone, before a device that can be held, broken and watched."""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from app.errors import Closing, InvalidInput, NonFinite, Overloaded, SparseRMError
from app.model.packing import Trie, pack
from app.serve.batcher import Batcher, Entry, next_batch
from app.serve.metrics import Metrics
from app.types import Ask, Encoded, Job, Scored

pytestmark = pytest.mark.anyio
POISON = 666


class Bench:
    """A device that notes its batches, waits at a gate, and chokes on poison."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def prepare(self, jobs: Sequence[Job]) -> Sequence[Job]:
        return jobs

    def run(self, prepared: Sequence[Job]) -> list[Scored | NonFinite]:
        self.batches.append([job.encoded.ids[0] for job in prepared])
        self.entered.set()
        self.gate.wait(10)
        if any(POISON in job.encoded.ids for job in prepared):
            raise RuntimeError("poison")
        return [Scored((), len(job.encoded.ids), float(job.encoded.ids[0]), 0.0) for job in prepared]

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def job(first: int, length: int = 4) -> Job:
    return Job(Encoded((first,) * length, 1), Ask(("m",)))


def batcher(bench: Bench, batch_tokens: int = 1000, queue_tokens: int = 10_000) -> Batcher:
    return Batcher(bench, Metrics(CollectorRegistry()), batch_tokens=batch_tokens, queue_tokens=queue_tokens)


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


async def test_answers_come_in_order() -> None:
    async with batcher(Bench()) as one:
        answers = await one.submit([job(n) for n in (5, 3, 9)])
    assert [a.result.forward_s for a in answers if isinstance(a.result, Scored)] == [5, 3, 9]


async def test_an_idle_device_is_used_at_once_and_a_busy_one_gathers() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.submit([job(1)]))
            await wait_for(bench.entered)
            rest = [asyncio.create_task(one.submit([job(n)])) for n in range(2, 9)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *rest)
    assert bench.batches == [[1], [2, 3, 4, 5, 6, 7, 8]]


async def test_a_full_batch_is_sealed_ahead_and_later_items_wait_for_the_next() -> None:
    bench = Bench()
    async with batcher(bench, batch_tokens=8) as one:
        with bench.held():
            first = asyncio.create_task(one.submit([job(1)]))
            await wait_for(bench.entered)
            rest = [asyncio.create_task(one.submit([job(n)])) for n in range(2, 7)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *rest)
    assert bench.batches == [[1], [2, 3], [4, 5], [6]]


async def test_one_poison_item_fails_alone() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.submit([job(1)]))
            await wait_for(bench.entered)
            mixed = asyncio.create_task(one.submit([job(2), job(POISON), job(3)]))
            await asyncio.sleep(0.05)
        await first
        results = [answer.result for answer in await mixed]
    assert [isinstance(result, Scored) for result in results] == [True, False, True]
    assert isinstance(results[1], SparseRMError)
    assert "poison" not in str(results[1])


async def test_items_of_a_caller_that_left_are_dropped() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.submit([job(1)]))
            await wait_for(bench.entered)
            gone = asyncio.create_task(one.submit([job(2)]))
            stays = asyncio.create_task(one.submit([job(3)]))
            await asyncio.sleep(0.05)
            gone.cancel()
        await asyncio.gather(first, stays)
    assert bench.batches == [[1], [3]]


async def test_a_full_queue_says_not_now_and_an_impossible_request_never() -> None:
    bench = Bench()
    async with batcher(bench, queue_tokens=10) as one:
        with pytest.raises(InvalidInput, match="the queue holds 10"):
            await one.submit([job(1, 11)])
        with bench.held():
            first = asyncio.create_task(one.submit([job(1)]))
            await wait_for(bench.entered)
            second = asyncio.create_task(one.submit([job(2, 8)]))
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):
                await one.submit([job(3)])
        await asyncio.gather(first, second)


async def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    bench = Bench()
    one = batcher(bench)
    async with one:
        waiting = [asyncio.create_task(one.submit([job(n)])) for n in range(1, 5)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*waiting)
    assert all(isinstance(answer.result, Scored) for (answer,) in answers)
    with pytest.raises(Closing):
        await one.submit([job(9)])


async def test_next_batch_counts_new_tokens_only() -> None:
    loop = asyncio.get_running_loop()
    shared = tuple(range(50))
    jobs = [Job(Encoded((*shared, 100 + n), 50), Ask(("m",))) for n in range(10)]
    queue = deque(Entry(one, loop.create_future()) for one in jobs)
    assert len(next_batch(queue, 55)) == 5
    assert len(queue) == 5


def test_the_trie_counts_what_packing_computes() -> None:
    items = [(1, 2, 3), (1, 2, 4), (1, 2), (5,), (1, 2, 3)]
    trie = Trie()
    for item in items:
        trie.add(item)
    assert trie.size == len(pack(items).ids) == 5
