"""OpenTelemetry, for those who install the extra: a span a request, and in it one a stage."""

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
    """Spans sent to a collector, many at once."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))


def add_tracing(app: FastAPI, processor: SpanProcessor) -> None:
    """Trace every request of an app; callers' trace contexts are taken up."""
    provider = TracerProvider(resource=Resource({"service.name": "sparserm", "service.version": app.version}))
    provider.add_span_processor(processor)
    app.add_middleware(StageSpans, tracer=provider.get_tracer("sparserm"))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider, exclude_spans=["receive", "send"])


class StageSpans:
    """Middleware that tells the request's span what was noted of it, and adds the stages."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell(scope.get(LOG_FIELDS_KEY, {}))
            await send(message)

        await self._app(scope, receive, told)

    def _tell(self, note: dict[str, Any]) -> None:
        for name, value in note.items():
            get_current_span().set_attribute(f"sparserm.{name}", value)
        lengths = [int(note.get(f"{stage}_ms", 0) * 1e6) for stage in STAGES]
        begun = time.time_ns() - sum(lengths)
        for stage, length in zip(STAGES, lengths, strict=True):
            if length:
                self._tracer.start_span(stage, start_time=begun).end(begun + length)
            begun += length
