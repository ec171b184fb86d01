"""The outer middleware: limits on bodies, security headers, and a log line without text of the request."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from app.reward.engine import Engine
from app.serve.middleware.access_log import JsonFormatter
from app.settings import Settings
from tests.support.servers import open_client

pytestmark = pytest.mark.anyio
BODY = {"inputs": [{"prompt": "amber secret", "response": "quiet secret"}]}


async def test_buffered_bodies_are_bounded_together_and_released(engine: Engine, settings: Settings) -> None:
    small_limit = settings.model_copy(update={"max_buffered_bytes": 4096})
    async with open_client(engine, small_limit) as client:
        refused = await client.post("/v1/rewards", content=b" " * 5000)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        for _ in range(100):
            assert (await client.post("/v1/rewards", json=BODY)).status_code == 200


async def test_a_body_that_does_not_arrive_in_time_is_refused(engine: Engine, settings: Settings) -> None:
    async def send_slowly() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        await asyncio.sleep(30)

    short_timeout = settings.model_copy(update={"client_timeout_s": 1})
    async with open_client(engine, short_timeout) as client:
        response = await client.post("/v1/rewards", content=send_slowly())
    assert response.status_code == 408
    assert response.json()["error"]["type"] == "timeout_error"


async def test_html_pages_may_load_their_parts_and_api_responses_nothing(
    engine: Engine, settings: Settings
) -> None:
    async with open_client(engine, settings) as client:
        response = await client.post("/v1/rewards", json=BODY)
        page, docs = await client.get("/"), await client.get("/docs")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert "script-src 'self'" in docs.headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self'; img-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for headers in (response.headers, page.headers, docs.headers):
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


async def test_each_request_is_one_log_line_with_its_stages_and_without_its_text(
    engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_client(engine, settings) as client:
        headers = {"X-Request-ID": "mine-1", "X-SparseRM-Caller": "run-7"}
        await client.post("/v1/rewards", json={**BODY, "model": "beta"}, headers=headers)
        await client.post("/get_reward", json={"query": ["amber secret"]})
        await client.post("/v1/rewards", json={"inputs": [{"prompt": "secret", "response": 3}]})
        await client.get("/secret")
    records = [record for record in caplog.records if record.name != "httpx"]  # not those of the client
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    assert "secret" not in json.dumps(lines)
    requests = [line for line in lines if line["logger"] == "sparserm.request"]
    assert [line["status"] for line in requests] == [200, 200, 422, 404]
    first = requests[0]
    assert first["id"] == "mine-1"
    assert (first["route"], first["models"], first["caller"]) == ("/v1/rewards", "beta", "run-7")
    assert (first["items"], first["tokens"]) == (1, first["computed_tokens"])
    assert first["ms"] >= first["device_ms"] > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-SparseRM-Timeout", "0"), ("X-SparseRM-Timeout", "soon"), ("X-SparseRM-Priority", "first")],
)
async def test_invalid_request_headers_are_refused(
    name: str, value: str, engine: Engine, settings: Settings
) -> None:
    async with open_client(engine, settings) as client:
        for path, body in (("/v1/rewards", BODY), ("/get_reward", {"query": ["amber"]})):
            response = await client.post(path, json=body, headers={name: value})
            assert response.status_code == 422, path
