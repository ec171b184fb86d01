"""The batcher alone, in front of a device that can be paused, broken and inspected."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from app.backbone.packing import PackedTokenCounter, pack
from app.errors import InvalidInput, NonFiniteScore, Overloaded, ServiceUnavailable, SparseRMError
from app.scores import ScoredItem
from app.serve.batching.executor import Executor
from app.serve.batching.fair_queue import FailedItem, pop_batch
from app.serve.batching.request_context import RequestContext
from app.types import EncodedItem, ScoreJob, ScoreOptions
from tests.support.controlled_device import (
    FAILING_ID,
    FATAL_ID,
    OUT_OF_MEMORY_ID,
    ControlledDevice,
    create_batcher,
    create_job,
    queue_jobs,
    wait_for,
)

pytestmark = pytest.mark.anyio
LARGE_REQUEST, SMALL_REQUEST = RequestContext("large"), RequestContext("small")


async def test_results_come_in_order() -> None:
    async with create_batcher(ControlledDevice()) as batcher:
        results = await batcher.score([create_job(n) for n in (5, 3, 9)])
    assert [item.forward_s for item in results if isinstance(item, ScoredItem)] == [5, 3, 9]


async def test_an_idle_device_starts_at_once_and_a_busy_one_collects_a_batch() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            others = [asyncio.create_task(batcher.score([create_job(n)])) for n in range(2, 9)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *others)
    assert device.batches == [[1], [2, 3, 4, 5, 6, 7, 8]]


async def test_a_full_batch_is_taken_ahead_and_later_items_wait_for_the_next() -> None:
    device = ControlledDevice()
    async with create_batcher(device, batch_tokens=8) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            others = [asyncio.create_task(batcher.score([create_job(n)])) for n in range(2, 7)]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *others)
    assert device.batches == [[1], [2, 3], [4, 5], [6]]


class ConcurrentDevice(ControlledDevice):
    """A device whose batches wait until another one runs at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(2)

    def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFiniteScore]:
        self.barrier.wait(10)
        return super().run(prepared)


async def test_many_items_run_in_concurrent_batches() -> None:
    device, shares = ConcurrentDevice(), list[int]()
    async with create_batcher(device, batch_tokens=16, executor=Executor(2, shares.append)) as batcher:
        results = await batcher.score([create_job(n) for n in range(8)])
    assert [item.forward_s for item in results if isinstance(item, ScoredItem)] == [*range(8)]
    assert sorted(device.batches) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert shares == [2, 2, 2, 2]


async def test_the_last_batch_of_many_items_runs_on_all_threads() -> None:
    device, shares = ControlledDevice(), list[int]()
    async with create_batcher(device, batch_tokens=16, executor=Executor(2, shares.append)) as batcher:
        await batcher.score([create_job(n) for n in range(5)])
    assert device.batches == [[0, 1], [2, 3], [4]]
    assert shares == [2, 2, 1]


async def test_a_failing_item_fails_alone() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            mixed = asyncio.create_task(batcher.score([create_job(2), create_job(FAILING_ID), create_job(3)]))
            await asyncio.sleep(0.05)
        await first
        results = await mixed
    assert [isinstance(result, ScoredItem) for result in results] == [True, False, True]
    assert isinstance(results[1], FailedItem)
    assert isinstance(results[1].error, SparseRMError)
    assert "poison" not in str(results[1].error)


async def test_a_device_that_returns_too_few_results_is_given_up() -> None:
    class ShortDevice(ControlledDevice):
        def run(self, prepared: Sequence[ScoreJob]) -> list[ScoredItem | NonFiniteScore]:
            return super().run(prepared)[1:]

    async with create_batcher(ShortDevice()) as batcher:
        results = await asyncio.wait_for(batcher.score([create_job(1), create_job(2)]), 10)
    errors = [type(item.error) for item in results if isinstance(item, FailedItem)]
    assert errors == [ServiceUnavailable, ServiceUnavailable]
    assert batcher.device_lost


async def test_items_of_a_cancelled_request_are_dropped() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            cancelled = asyncio.create_task(batcher.score([create_job(2)]))
            other = asyncio.create_task(batcher.score([create_job(3)]))
            await asyncio.sleep(0.05)
            cancelled.cancel()
        await asyncio.gather(first, other)
    assert device.batches == [[1], [3]]


async def test_a_full_queue_refuses_for_now_and_a_request_over_the_limit_for_good() -> None:
    device = ControlledDevice()
    async with create_batcher(device, queue_tokens=10) as batcher:
        with pytest.raises(InvalidInput, match="this server holds 10"):
            await batcher.score([create_job(1, 11)])
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            second = asyncio.create_task(batcher.score([create_job(2, 6)]))
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):
                await batcher.score([create_job(3)])
        await asyncio.gather(first, second)


async def test_closing_scores_what_is_queued_and_refuses_new_requests() -> None:
    device = ControlledDevice()
    batcher = create_batcher(device)
    async with batcher:
        queued = [asyncio.create_task(batcher.score([create_job(n)])) for n in range(1, 5)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*queued)
    assert all(isinstance(item, ScoredItem) for (item,) in results)
    with pytest.raises(ServiceUnavailable):
        await batcher.score([create_job(9)])


async def test_a_batch_that_does_not_fit_is_halved_and_later_batches_are_smaller() -> None:
    device = ControlledDevice()
    async with create_batcher(device, batch_tokens=1024) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            ids = (2, 3, 4, 5, 6, OUT_OF_MEMORY_ID, 8, 9)
            large = asyncio.create_task(batcher.score([create_job(n, 128) for n in ids]))
            await asyncio.sleep(0.05)
        await first
        assert all(isinstance(item, ScoredItem) for item in await large)
        assert batcher.metric("batch_budget_tokens") < 1024
        for _ in range(200):
            await batcher.score([create_job(1)])
        assert batcher.metric("batch_budget_tokens") == 1024


async def test_a_device_that_fails_on_everything_is_given_up() -> None:
    device, calls = ControlledDevice(), []
    batcher = create_batcher(device, on_device_lost=lambda: calls.append(1))
    async with batcher:
        await batcher.score([create_job(1)])
        with device.paused():
            device.started.clear()
            fatal = asyncio.create_task(batcher.score([create_job(FATAL_ID), create_job(2)]))
            await wait_for(device.started)
            queued = asyncio.create_task(batcher.score([create_job(3)]))
            await asyncio.sleep(0.05)
        results = [*await fatal, *await queued]
        assert all(
            isinstance(item, FailedItem) and isinstance(item.error, ServiceUnavailable) for item in results
        )
        assert calls == [1]
        assert not batcher.accepting
        with pytest.raises(ServiceUnavailable, match="lost"):
            await batcher.score([create_job(4)])


async def test_a_failing_item_alone_in_its_batch_does_not_lose_the_device() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        [failed] = await batcher.score([create_job(FAILING_ID)])
        assert isinstance(failed, FailedItem)
        assert isinstance(failed.error, SparseRMError)
        assert device.verify_calls == 1
        [scored] = await batcher.score([create_job(1)])
    assert isinstance(scored, ScoredItem)


async def test_a_device_that_hangs_is_given_up() -> None:
    device, calls = ControlledDevice(), []
    batcher = create_batcher(device, device_timeout_s=0.2, on_device_lost=lambda: calls.append(1))
    async with batcher:
        with device.paused():
            [failed] = await batcher.score([create_job(1)])
            assert isinstance(failed, FailedItem)
            assert isinstance(failed.error, ServiceUnavailable)
        assert calls == [1]


async def test_items_past_their_deadline_are_not_computed() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        with device.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            late = asyncio.create_task(batcher.score([create_job(2)], RequestContext(timeout_s=0.05)))
            other = asyncio.create_task(batcher.score([create_job(3)]))
            await asyncio.sleep(0.1)
        await asyncio.gather(first, other)
        [failed] = await late
    assert isinstance(failed, FailedItem)
    assert isinstance(failed.error, Overloaded)
    assert device.batches == [[1], [3]]


async def test_the_estimated_completion_counts_whole_batches() -> None:
    """No item of a batch is scored before the batch ends."""
    device = ControlledDevice()
    async with create_batcher(device, batch_tokens=8) as batcher:
        batcher.admission.record_batch(10, 1.0)
        with device.paused():
            earlier = [asyncio.create_task(batcher.score([create_job(n, 8)])) for n in (1, 2)]
            await wait_for(device.started)
            with pytest.raises(Overloaded), batcher.reserve(4, RequestContext(timeout_s=2.75)):
                pass
            with batcher.reserve(4, RequestContext(timeout_s=3.25)):
                pass
        await asyncio.gather(*earlier)


async def test_a_single_item_does_not_wait_behind_ten_thousand() -> None:
    device, many = ControlledDevice(), [create_job(1)] * 10_000
    async with create_batcher(device, batch_tokens=8, queue_tokens=10**6) as batcher:
        with device.paused():
            large = asyncio.create_task(batcher.score(many, LARGE_REQUEST))
            await wait_for(device.started)
            small = asyncio.create_task(batcher.score([create_job(2)], SMALL_REQUEST))
            await asyncio.sleep(0.05)
        await small
        assert sum(2 in batch for batch in device.batches) == 1
        assert len(device.batches) < 20
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)


async def test_a_batch_never_mixes_two_engines() -> None:
    old, new = ControlledDevice(), ControlledDevice()
    async with create_batcher(old) as batcher:
        with old.paused():
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(old.started)
            others = [
                asyncio.create_task(batcher.score([create_job(n)], device=(old, new)[n % 2]))
                for n in range(2, 8)
            ]
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *others)
    assert sorted(n for batch in new.batches for n in batch) == [3, 5, 7]
    assert sorted(n for batch in old.batches for n in batch) == [1, 2, 4, 6]


async def test_a_reservation_is_released_however_the_request_ends() -> None:
    device = ControlledDevice()
    async with create_batcher(device) as batcher:
        await batcher.score([create_job(1), create_job(FAILING_ID)])
        with device.paused():
            device.started.clear()
            first = asyncio.create_task(batcher.score([create_job(1)]))
            await wait_for(device.started)
            cancelled = asyncio.create_task(batcher.score([create_job(2), create_job(3)]))
            await asyncio.sleep(0.05)
            assert batcher.admission.reserved_tokens == 12
            cancelled.cancel()
            await asyncio.sleep(0)
            assert batcher.admission.reserved_tokens == 4
        await first
        assert batcher.admission.reserved_tokens == 0
        assert batcher.metric("queue_tokens") == 0


async def test_pop_batch_counts_new_tokens_only() -> None:
    shared = tuple(range(50))
    options = ScoreOptions(("m",))
    queue = queue_jobs(*(ScoreJob(EncodedItem((*shared, 100 + n), 50), options) for n in range(10)))
    assert len(pop_batch(queue, 55, 55)) == 5
    assert queue.num_items == 5


async def test_pop_batch_computes_a_prompt_once_if_its_responses_exceed_a_slots_share() -> None:
    jobs = [
        ScoreJob(EncodedItem((prompt,) * 20 + (n,), 20), ScoreOptions(("m",)))
        for prompt in (1, 2)
        for n in range(10)
    ]
    queue = queue_jobs(*jobs)
    sizes = []
    while batch := pop_batch(queue, 22, 28):
        sizes.append((batch[0].prompt_ids[0], len(batch)))
    assert sizes == [(1, 8), (1, 2), (2, 8), (2, 2)]


def test_the_token_counter_counts_what_packing_computes() -> None:
    items = [(1, 2, 3), (1, 2, 4), (1, 2), (5,), (1, 2, 3)]
    counter = PackedTokenCounter()
    for item in items:
        counter.add(item)
    assert counter.num_tokens == len(pack(items).ids) == 5
