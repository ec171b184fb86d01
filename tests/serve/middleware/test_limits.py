"""What every request passes: limits on bodies, headers of caution, one line in the log that tells no text."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from app.reward.engine import Engine
from app.serve.middleware.access_log import JsonFormatter
from app.settings import Settings
from tests.support.servers import server

pytestmark = pytest.mark.anyio
BODY = {"inputs": [{"prompt": "amber secret", "response": "quiet secret"}]}


async def test_bodies_together_are_bounded_and_given_back(engine: Engine, settings: Settings) -> None:
    small = settings.model_copy(update={"max_buffered_bytes": 4096})
    async with server(engine, small) as client:
        refused = await client.post("/v1/rewards", content=b" " * 5000)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        for _ in range(100):
            assert (await client.post("/v1/rewards", json=BODY)).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(engine: Engine, settings: Settings) -> None:
    async def dribble() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        await asyncio.sleep(30)

    hasty = settings.model_copy(update={"client_timeout_s": 1})
    async with server(engine, hasty) as client:
        answer = await client.post("/v1/rewards", content=dribble())
    assert answer.status_code == 408
    assert answer.json()["error"]["type"] == "timeout_error"


async def test_a_page_may_load_what_it_is_made_of_and_an_answer_nothing(
    engine: Engine, settings: Settings
) -> None:
    async with server(engine, settings) as client:
        answer = await client.post("/v1/rewards", json=BODY)
        page, manual = await client.get("/"), await client.get("/docs")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "script-src 'self'" in manual.headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self'; img-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for one in (answer, page, manual):
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in one.headers


async def test_one_line_a_request_with_its_stages_and_without_its_text(
    engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server(engine, settings) as client:
        headers = {"X-Request-ID": "mine-1", "X-SparseRM-Caller": "run-7"}
        await client.post("/v1/rewards", json={**BODY, "model": "beta"}, headers=headers)
        await client.post("/get_reward", json={"query": ["amber secret"]})
        await client.post("/v1/rewards", json={"inputs": [{"prompt": "secret", "response": 3}]})
        await client.get("/secret")
    ours = [record for record in caplog.records if record.name != "httpx"]  # the client's own voice
    lines = [json.loads(JsonFormatter().format(record)) for record in ours]
    assert "secret" not in json.dumps(lines)
    told = [line for line in lines if line["logger"] == "sparserm.request"]
    assert [line["status"] for line in told] == [200, 200, 422, 404]
    first = told[0]
    assert first["id"] == "mine-1"
    assert (first["route"], first["models"], first["caller"]) == ("/v1/rewards", "beta", "run-7")
    assert (first["items"], first["tokens"]) == (1, first["computed_tokens"])
    assert first["ms"] >= first["device_ms"] > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-SparseRM-Timeout", "0"), ("X-SparseRM-Timeout", "soon"), ("X-SparseRM-Priority", "first")],
)
async def test_terms_that_mean_nothing_are_refused(
    name: str, value: str, engine: Engine, settings: Settings
) -> None:
    async with server(engine, settings) as client:
        for path, body in (("/v1/rewards", BODY), ("/get_reward", {"query": ["amber"]})):
            answer = await client.post(path, json=body, headers={name: value})
            assert answer.status_code == 422, path
