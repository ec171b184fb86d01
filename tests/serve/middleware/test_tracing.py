"""The spans that a collector receives."""

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from app.reward.engine import Engine
from app.serve.application import create_app
from app.serve.middleware import tracing
from app.settings import Settings
from tests.support.servers import open_app_client

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.anyio
async def test_a_request_is_a_span_with_its_stages_and_without_its_text(
    engine: Engine, settings: Settings
) -> None:
    exporter = InMemorySpanExporter()
    app = create_app(engine, settings, CollectorRegistry())
    tracing.add_tracing(app, SimpleSpanProcessor(exporter))
    async with open_app_client(app) as client:
        headers = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
        body = {"inputs": [{"prompt": "amber secret", "response": "quiet"}]}
        assert (await client.post("/v1/rewards", json=body, headers=headers)).status_code == 200
        await client.get("/health")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request_span = spans["POST /v1/rewards"]
    assert request_span.context is not None
    assert f"{request_span.context.trace_id:032x}" == TRACE_ID
    assert (request_span.attributes or {})["sparserm.items"] == 1
    for stage in tracing.STAGES:
        parent = spans[stage].parent
        assert parent is not None
        assert parent.span_id == request_span.context.span_id
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())
