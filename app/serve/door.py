"""What every request passes: an id, a size limit, a count and a clock. Plain ASGI, so bodies stream."""

import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serve.metrics import Metrics


class Door:
    """Middleware around the whole app."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = time.perf_counter(), 500
        request_id = _request_id(scope)

        async def numbered(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, self._limited(scope, receive), numbered)
        finally:
            self._metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, scope["method"], str(code)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """The body, until it is longer than allowed."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message: dict[str, Any] = dict(await receive())
            seen += len(message.get("body", b""))
            if seen > self._limit or (declared.isdigit() and int(declared) > self._limit):
                raise HTTPException(413, f"the body is larger than {self._limit} bytes")
            return message

        return counted


def _request_id(scope: Scope) -> bytes:
    """The caller's id if it sent a sane one, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    sane = 0 < len(given) <= 128 and given.isascii() and given.decode("ascii", "replace").isprintable()
    return given if sane else uuid.uuid4().hex.encode()
