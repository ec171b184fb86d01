"""Passes side by side: as many as fit the threads, each on its share of them, and nobody's scores change."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from prometheus_client import CollectorRegistry

from app.backbone.runtime import threads as teams
from app.reward.engine import Engine
from app.serve.batching.batcher import Batcher
from app.serve.batching.executor import Lanes
from app.serve.metrics import Metrics
from app.types import ScoredItem, ScoreJob, ScoreOptions
from tests.support import tiny
from tests.support.controlled_device import PATIENT

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("threads", "wanted", "kind", "count"),
    [
        (1, 0, "cpu", 1),
        (2, 0, "cpu", 2),
        (4, 0, "cpu", 1),
        (4, 2, "cpu", 2),
        (4, 9, "cpu", 4),
        (2, 2, "cuda", 1),
    ],
)
async def test_lanes_share_the_threads_of_a_cpu(threads: int, wanted: int, kind: str, count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, tell = teams.lanes(wanted, kind)
        assert found == count
        lanes = Lanes(found, tell)
        alone = await lanes.work(torch.get_num_threads)
        lanes.take(1, crowd=True)
        shared = await lanes.work(torch.get_num_threads, lanes.busy[0])
        lanes.shutdown(wait=True)
        if count > 1:
            assert (alone, shared) == (threads, threads // count)
    finally:
        torch.set_num_threads(before)


async def test_scores_are_the_same_side_by_side(engine: Engine) -> None:
    jobs = [ScoreJob(one, ScoreOptions(tuple(engine.models))) for one in engine.encode(tiny.babble(200))]
    alone = [one for job in jobs for one in engine.score([job])]
    batcher = Batcher(
        Metrics(CollectorRegistry()), batch_tokens=256, queue_tokens=10**6, lanes=Lanes(2, lambda _: None)
    )
    async with batcher:

        async def asked(some: Sequence[ScoreJob]) -> list[object]:
            with batcher.room(1, PATIENT) as room:
                return [answer.result for answer in await batcher.submit(some, engine, room)]

        found = await asyncio.gather(*(asked(jobs[n : n + 25]) for n in range(0, len(jobs), 25)))
    together = [one for some in found for one in some]
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, ScoredItem)
        assert isinstance(other, ScoredItem)
        rewards = [[score.reward for score in scored.scores] for scored in (one, other)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)
