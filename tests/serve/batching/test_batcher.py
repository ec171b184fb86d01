"""The batcher alone, before a device that can be held, broken and watched."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from app.backbone.packing import Trie, pack
from app.errors import Closing, InvalidInput, NonFinite, Overloaded, SparseRMError
from app.serve.batching.executor import Lanes
from app.serve.batching.fair_queue import next_batch
from app.types import EncodedItem, RequestContext, ScoredItem, ScoreJob, ScoreOptions
from tests.support.controlled_device import (
    DEATH,
    HUGE,
    POISON,
    Bench,
    batcher,
    job,
    lined,
    wait_for,
)

pytestmark = pytest.mark.anyio
CROWD, SINGLE = RequestContext("crowd"), RequestContext("single")


async def test_answers_come_in_order() -> None:
    async with batcher(Bench()) as one:
        answers = await one.ask([job(n) for n in (5, 3, 9)])
    assert [a.result.forward_s for a in answers if isinstance(a.result, ScoredItem)] == [5, 3, 9]


async def test_an_idle_device_is_used_at_once_and_a_busy_one_gathers() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            rest = [asyncio.create_task(one.ask([job(n)])) for n in range(2, 9)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *rest)
    assert bench.batches == [[1], [2, 3, 4, 5, 6, 7, 8]]


async def test_a_full_batch_is_sealed_ahead_and_later_items_wait_for_the_next() -> None:
    bench = Bench()
    async with batcher(bench, batch_tokens=8) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            rest = [asyncio.create_task(one.ask([job(n)])) for n in range(2, 7)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *rest)
    assert bench.batches == [[1], [2, 3], [4, 5], [6]]


class Abreast(Bench):
    """A device whose passes wait for another one at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.met = threading.Barrier(2)

    def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFinite]:
        self.met.wait(10)
        return super().run(prepared)


async def test_a_crowd_runs_side_by_side() -> None:
    bench, told = Abreast(), list[int]()
    async with batcher(bench, batch_tokens=16, lanes=Lanes(2, told.append)) as one:
        answers = await one.ask([job(n) for n in range(8)])
    assert [answer.result.forward_s for answer in answers if isinstance(answer.result, ScoredItem)] == [
        *range(8)
    ]
    assert sorted(bench.batches) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert told == [2, 2, 2, 2]


async def test_what_a_crowd_leaves_over_runs_on_all_threads() -> None:
    bench, told = Bench(), list[int]()
    async with batcher(bench, batch_tokens=16, lanes=Lanes(2, told.append)) as one:
        await one.ask([job(n) for n in range(5)])
    assert bench.batches == [[0, 1], [2, 3], [4]]
    assert told == [2, 2, 1]


async def test_one_poison_item_fails_alone() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            mixed = asyncio.create_task(one.ask([job(2), job(POISON), job(3)]))
            await asyncio.sleep(0.05)
        await first
        results = [answer.result for answer in await mixed]
    assert [isinstance(result, ScoredItem) for result in results] == [True, False, True]
    assert isinstance(results[1], SparseRMError)
    assert "poison" not in str(results[1])


async def test_a_device_that_answers_nonsense_is_given_up() -> None:
    class Mute(Bench):
        def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFinite]:
            return super().run(prepared)[1:]

    async with batcher(Mute()) as one:
        answers = await asyncio.wait_for(one.ask([job(1), job(2)]), 10)
    assert [type(answer.result) for answer in answers] == [Closing, Closing]
    assert one.lost


async def test_items_of_a_caller_that_left_are_dropped() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            gone = asyncio.create_task(one.ask([job(2)]))
            stays = asyncio.create_task(one.ask([job(3)]))
            await asyncio.sleep(0.05)
            gone.cancel()
        await asyncio.gather(first, stays)
    assert bench.batches == [[1], [3]]


async def test_a_full_queue_says_not_now_and_an_impossible_request_never() -> None:
    bench = Bench()
    async with batcher(bench, queue_tokens=10) as one:
        with pytest.raises(InvalidInput, match="this server holds 10"):
            await one.ask([job(1, 11)])
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            second = asyncio.create_task(one.ask([job(2, 6)]))
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):
                await one.ask([job(3)])
        await asyncio.gather(first, second)


async def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    bench = Bench()
    one = batcher(bench)
    async with one:
        waiting = [asyncio.create_task(one.ask([job(n)])) for n in range(1, 5)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*waiting)
    assert all(isinstance(answer.result, ScoredItem) for (answer,) in answers)
    with pytest.raises(Closing):
        await one.ask([job(9)])


async def test_a_batch_that_does_not_fit_is_halved_and_passes_become_smaller() -> None:
    bench = Bench()
    async with batcher(bench, batch_tokens=1024) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            rest = asyncio.create_task(one.ask([job(n, 128) for n in (2, 3, 4, 5, 6, HUGE, 8, 9)]))
            await asyncio.sleep(0.05)
        await first
        assert all(isinstance(answer.result, ScoredItem) for answer in await rest)
        assert one.told("batch_budget_tokens") < 1024
        for _ in range(200):
            await one.ask([job(1)])
        assert one.told("batch_budget_tokens") == 1024


async def test_a_device_that_fails_at_everything_is_given_up() -> None:
    bench, given_up = Bench(), []
    one = batcher(bench, give_up=lambda: given_up.append(1))
    async with one:
        await one.ask([job(1)])
        with bench.held():
            bench.entered.clear()
            dying = asyncio.create_task(one.ask([job(DEATH), job(2)]))
            await wait_for(bench.entered)
            waiting = asyncio.create_task(one.ask([job(3)]))
            await asyncio.sleep(0.05)
        answers = [*await dying, *await waiting]
        assert all(isinstance(answer.result, Closing) for answer in answers)
        assert given_up == [1]
        assert not one.accepting
        with pytest.raises(Closing, match="lost"):
            await one.ask([job(4)])


async def test_one_hopeless_item_does_not_condemn_the_device() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        [answer] = await one.ask([job(POISON)])
        assert isinstance(answer.result, SparseRMError)
        assert bench.verified == 1
        [after] = await one.ask([job(1)])
    assert isinstance(after.result, ScoredItem)


async def test_a_device_that_hangs_is_given_up() -> None:
    bench, given_up = Bench(), []
    one = batcher(bench, hang_s=0.2, give_up=lambda: given_up.append(1))
    async with one:
        with bench.held():
            [answer] = await one.ask([job(1)])
            assert isinstance(answer.result, Closing)
        assert given_up == [1]


async def test_what_is_late_is_not_computed() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        with bench.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            late = asyncio.create_task(one.ask([job(2)], RequestContext(timeout_s=0.05)))
            stays = asyncio.create_task(one.ask([job(3)]))
            await asyncio.sleep(0.1)
        await asyncio.gather(first, stays)
        [answer] = await late
    assert isinstance(answer.result, Overloaded)
    assert bench.batches == [[1], [3]]


async def test_a_promise_counts_whole_passes() -> None:
    """Of a pass nobody is answered before its end."""
    bench = Bench()
    async with batcher(bench, batch_tokens=8) as one:
        one.backlog.passed(10, 1.0)
        with bench.held():
            before = [asyncio.create_task(one.ask([job(n, 8)])) for n in (1, 2)]
            await wait_for(bench.entered)
            with pytest.raises(Overloaded), one.room(4, RequestContext(timeout_s=2.75)):
                pass
            with one.room(4, RequestContext(timeout_s=3.25)):
                pass
        await asyncio.gather(*before)


async def test_a_single_item_does_not_wait_behind_ten_thousand() -> None:
    bench, many = Bench(), [job(1)] * 10_000
    async with batcher(bench, batch_tokens=8, queue_tokens=10**6) as one:
        with bench.held():
            crowd = asyncio.create_task(one.ask(many, CROWD))
            await wait_for(bench.entered)
            single = asyncio.create_task(one.ask([job(2)], SINGLE))
            await asyncio.sleep(0.05)
        await single
        assert sum(2 in batch for batch in bench.batches) == 1
        assert len(bench.batches) < 20
        crowd.cancel()
        await asyncio.gather(crowd, return_exceptions=True)


async def test_a_batch_never_mixes_two_engines() -> None:
    old, new = Bench(), Bench()
    async with batcher(old) as one:
        with old.held():
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(old.entered)
            rest = [asyncio.create_task(one.ask([job(n)], bench=(old, new)[n % 2])) for n in range(2, 8)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *rest)
    assert sorted(n for batch in new.batches for n in batch) == [3, 5, 7]
    assert sorted(n for batch in old.batches for n in batch) == [1, 2, 4, 6]


async def test_room_comes_back_whatever_becomes_of_a_request() -> None:
    bench = Bench()
    async with batcher(bench) as one:
        await one.ask([job(1), job(POISON)])
        with bench.held():
            bench.entered.clear()
            first = asyncio.create_task(one.ask([job(1)]))
            await wait_for(bench.entered)
            gone = asyncio.create_task(one.ask([job(2), job(3)]))
            await asyncio.sleep(0.05)
            assert one.backlog.tokens == 12
            gone.cancel()
            await asyncio.sleep(0)
            assert one.backlog.tokens == 4
        await first
        assert one.backlog.tokens == 0
        assert one.told("queue_tokens") == 0


async def test_next_batch_counts_new_tokens_only() -> None:
    shared = tuple(range(50))
    line = lined(*(ScoreJob(EncodedItem((*shared, 100 + n), 50), ScoreOptions(("m",))) for n in range(10)))
    assert len(next_batch(line, 55, 55)) == 5
    assert line.items == 5


async def test_next_batch_reads_a_prompt_once_though_its_answers_are_more_than_a_share() -> None:
    jobs = [
        ScoreJob(EncodedItem((prompt,) * 20 + (n,), 20), ScoreOptions(("m",)))
        for prompt in (1, 2)
        for n in range(10)
    ]
    line = lined(*jobs)
    sizes = []
    while batch := next_batch(line, 22, 28):
        sizes.append((batch[0].prompt[0], len(batch)))
    assert sizes == [(1, 8), (1, 2), (2, 8), (2, 2)]


def test_the_trie_counts_what_packing_computes() -> None:
    items = [(1, 2, 3), (1, 2, 4), (1, 2), (5,), (1, 2, 3)]
    trie = Trie()
    for item in items:
        trie.add(item)
    assert trie.size == len(pack(items).ids) == 5
