"""Concurrent batches: as many as the CPU threads allow, each on its share of them, with unchanged scores."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry

from app.backbone.runtime.threads import plan_concurrent_batches
from app.reward.engine import Engine
from app.scores import ScoredItem
from app.serve.batching.batcher import Batcher
from app.serve.batching.executor import Executor
from app.serve.metrics import Metrics
from app.types import ScoreJob, ScoreOptions
from tests.support import tiny
from tests.support.controlled_device import LONG_TIMEOUT

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("num_threads", "requested", "device_type", "num_slots"),
    [
        (1, 0, "cpu", 1),
        (2, 0, "cpu", 2),
        (4, 0, "cpu", 1),
        (4, 2, "cpu", 2),
        (4, 9, "cpu", 4),
        (2, 2, "cuda", 1),
    ],
)
async def test_slots_share_the_threads_of_a_cpu(
    num_threads: int, requested: int, device_type: str, num_slots: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        actual, set_thread_share = plan_concurrent_batches(requested, device_type)
        assert actual == num_slots
        executor = Executor(actual, set_thread_share)
        alone = await executor.submit(torch.get_num_threads)
        executor.acquire(1, share_threads=True)
        shared = await executor.submit(torch.get_num_threads, executor.busy_slots[0])
        executor.shutdown(wait=True)
        if num_slots > 1:
            assert (alone, shared) == (num_threads, num_threads // num_slots)
    finally:
        torch.set_num_threads(before)


async def test_scores_are_the_same_in_concurrent_batches(engine: Engine) -> None:
    encoded_items = engine.encode(tiny.random_items(200))
    jobs = [ScoreJob(encoded, ScoreOptions(tuple(engine.models))) for encoded in encoded_items]
    expected = [item for job in jobs for item in engine.score([job])]
    batcher = Batcher(
        Metrics(CollectorRegistry()),
        batch_tokens=256,
        queue_tokens=10**6,
        executor=Executor(2, lambda _: None),
    )
    async with batcher:

        async def score(request: Sequence[ScoreJob]) -> Sequence[object]:
            with batcher.reserve(1, LONG_TIMEOUT) as reservation:
                return await batcher.submit(request, engine, reservation)

        results = await asyncio.gather(*(score(jobs[n : n + 25]) for n in range(0, len(jobs), 25)))
    concurrent = [item for items in results for item in items]
    for alone, together in zip(expected, concurrent, strict=True):
        assert isinstance(alone, ScoredItem)
        assert isinstance(together, ScoredItem)
        rewards = [[score.reward for score in item.scores] for item in (alone, together)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)
