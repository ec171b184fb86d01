"""The budget of a pass is measured where nobody sets it."""

import pytest

from app.backbone.runtime import batch_size
from app.reward.engine import Engine
from app.settings import Settings
from tests.support.servers import server

pytestmark = pytest.mark.anyio


def test_the_smallest_size_that_is_nearly_the_fastest_is_taken() -> None:
    assert batch_size.fewest({512: 0.50, 1024: 0.92, 2048: 1.80}) == 1024
    assert batch_size.fewest({512: 0.50, 1024: 0.99, 2048: 1.96}) == 512
    assert batch_size.fewest({512: 0.50, 1024: 0.80, 2048: 1.20}) == 2048


async def test_a_server_measures_its_budget_and_says_it(engine: Engine, settings: Settings) -> None:
    unset = settings.model_copy(update={"max_batch_tokens": 0, "dialects": "tei"})
    async with server(engine, unset) as client:
        assert (await client.get("/info")).json()["max_batch_tokens"] in batch_size.SIZES["cpu"]
    given = settings.model_copy(update={"max_batch_tokens": 300, "dialects": "tei"})
    async with server(engine, given) as client:
        assert (await client.get("/info")).json()["max_batch_tokens"] == 300
