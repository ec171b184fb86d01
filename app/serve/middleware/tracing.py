"""OpenTelemetry tracing (needs the extra `otel`): one span per request, and one per stage inside it."""

import time
from typing import Any

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer, get_current_span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serve.middleware.limits import LOG_FIELDS_KEY

STAGES = ("encode", "wait", "device")


def create_exporter(endpoint: str) -> SpanProcessor:
    """Return a processor that sends spans to a collector in batches."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))


def add_tracing(app: FastAPI, processor: SpanProcessor) -> None:
    """Trace every request of an app, within the caller's trace if the request carries one."""
    provider = TracerProvider(resource=Resource({"service.name": "sparserm", "service.version": app.version}))
    provider.add_span_processor(processor)
    app.add_middleware(StageSpans, tracer=provider.get_tracer("sparserm"))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider, exclude_spans=["receive", "send"])


class StageSpans:
    """ASGI middleware that adds the logged fields to the request's span, and a child span per stage."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; record the spans when the response starts."""

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._record(scope.get(LOG_FIELDS_KEY, {}))
            await send(message)

        await self._app(scope, receive, send_and_record)

    def _record(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            get_current_span().set_attribute(f"sparserm.{name}", value)
        durations_ns = [int(fields.get(f"{stage}_ms", 0) * 1e6) for stage in STAGES]
        start_ns = time.time_ns() - sum(durations_ns)
        for stage, duration_ns in zip(STAGES, durations_ns, strict=True):
            if duration_ns:
                self._tracer.start_span(stage, start_time=start_ns).end(start_ns + duration_ns)
            start_ns += duration_ns
