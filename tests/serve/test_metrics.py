"""The series that /metrics returns and their values after a few requests."""

from typing import Any

import httpx
import pytest

from app.reward.engine import Engine
from app.settings import Settings
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> Any:
    async with open_client(engine, settings) as client:
        yield client


SERIES = [
    "sparserm_requests_total",
    "sparserm_request_seconds",
    "sparserm_requests_in_flight",
    "sparserm_errors_total",
    "sparserm_stage_seconds",
    "sparserm_scored_total",
    "sparserm_reward_bucket",
    "sparserm_active_features",
    "sparserm_queue_items",
    "sparserm_queue_tokens",
    "sparserm_batch_items",
    "sparserm_batch_tokens",
    "sparserm_input_tokens",
    "sparserm_tokens_total",
    "sparserm_tokens_saved_total",
    "sparserm_truncated_total",
    "sparserm_dropped_total",
    "sparserm_batches_retried_total",
    "sparserm_non_finite_total",
    "sparserm_model_info",
]


async def test_metrics_count_rewards_errors_and_requests(client: httpx.AsyncClient) -> None:
    inputs = [{"prompt": "seven", "responses": ["maple", "orbit", "glass"]}]
    assert (await client.post("/v1/rewards", json={"inputs": inputs})).status_code == 200
    await client.post("/v1/rewards", json={"inputs": []})
    text = (await client.get("/metrics")).text
    for series in SERIES:
        assert f"\n{series}" in text, series
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['sparserm_scored_total{model="alpha"}']) == 3
    assert float(values["sparserm_tokens_saved_total"]) > 0
    assert float(values['sparserm_errors_total{cause="too_short"}']) == 1
    assert float(values['sparserm_requests_total{code="200",method="POST",route="/v1/rewards"}']) == 1
