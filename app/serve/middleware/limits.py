"""The outer middleware: request id, duration, body limits, security headers, and one log line per request.

It is plain ASGI, so bodies are streamed. Clients that stop sending or reading are disconnected.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import web
from app.serve.metrics import Metrics
from app.serve.middleware.access_log import LOG_RECORD_FIELDS

T = TypeVar("T")
log = logging.getLogger("sparserm.request")
# Keys in the ASGI scope. LOG_FIELDS_KEY holds fields that routes add to the log line; FORWARDED_KEY is set if
# another process has counted and logged the request.
LOG_FIELDS_KEY = "sparserm.log_fields"
REQUEST_ID_KEY = "sparserm.request_id"
FORWARDED_KEY = "sparserm.forwarded"
DOCS_PATHS = ("/docs", "/redoc")
CDN = "https://cdn.jsdelivr.net"
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
DOCS_POLICY = (
    f"default-src 'self'; script-src 'self' 'unsafe-inline' {CDN}; style-src 'self' 'unsafe-inline' {CDN}; "
    "img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class RequestLimits:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        max_buffered_bytes: int,
        client_timeout_s: float,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._client_timeout_s = client_timeout_s
        self._buffered_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with limits on its body, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 499
        request_id = _request_id(scope)
        scope[REQUEST_ID_KEY] = request_id
        body = BodyReader(self, scope, receive)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_response_headers(scope, request_id)]
            await self.wait_for_client(send(message))

        self._metrics.requests_in_flight.inc()
        try:
            await self._app(scope, body.receive, send_with_headers)
        finally:
            self._buffered_bytes -= body.num_bytes
            self._metrics.requests_in_flight.dec()
            self._record(scope, status, request_id, time.perf_counter() - started_at)

    async def wait_for_client(self, operation: Awaitable[T]) -> T:
        """Await something that depends on the client; TimeoutError if it takes too long."""
        return await asyncio.wait_for(operation, self._client_timeout_s)

    def buffer(self, num_bytes: int, num_bytes_before: int) -> None:
        """Count more bytes of a body as held in memory, or refuse them because of a limit."""
        if num_bytes_before + num_bytes > self._max_body_bytes:
            raise HTTPException(413, f"the body is larger than {self._max_body_bytes} bytes")
        if self._buffered_bytes + num_bytes > self._max_buffered_bytes:
            raise HTTPException(429, "too many bytes of requests are held in memory", {"Retry-After": "1"})
        self._buffered_bytes += num_bytes

    def _record(self, scope: Scope, status: int, request_id: bytes, seconds: float) -> None:
        """Count and log a finished request, unless the process that answered it has done so."""
        if FORWARDED_KEY in scope:
            return
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, scope["method"], str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        fields = {
            "id": request_id.decode("ascii"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 3),
            **scope.get(LOG_FIELDS_KEY, {}),
        }
        log.info("request", extra={LOG_RECORD_FIELDS: fields})


class BodyReader:
    """Receives the body of one request within the limits on its size and on the time between its parts."""

    def __init__(self, limits: RequestLimits, scope: Scope, receive: Receive) -> None:
        self.num_bytes = 0
        self._limits = limits
        self._receive = receive
        self._complete = False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._declared_bytes = int(declared) if declared.isdigit() and len(declared) < 20 else 0

    async def receive(self) -> Message:
        """Return the next part of the body; after the last one, wait for the client's disconnect."""
        if self._complete:
            return await self._receive()
        try:
            message: dict[str, Any] = dict(await self._limits.wait_for_client(self._receive()))
        except TimeoutError as error:
            raise HTTPException(408, "the body did not arrive in time") from error
        part_bytes = len(message.get("body", b""))
        self._limits.buffer(part_bytes, max(self.num_bytes, self._declared_bytes - part_bytes))
        self.num_bytes += part_bytes
        self._complete = not message.get("more_body", False)
        return message


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine; cancel it if the client disconnects first."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        disconnect.cancel()
        task.cancel()


def _response_headers(scope: Scope, request_id: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers that every response carries."""
    policy = _content_security_policy(scope["path"])
    return [(b"x-request-id", request_id), (b"content-security-policy", policy.encode()), *SECURITY_HEADERS]


def _content_security_policy(path: str) -> str:
    """Return the policy: HTML pages may load their own parts, other responses nothing."""
    if path == web.INDEX_PATH:
        return PAGE_POLICY
    return DOCS_POLICY if path.startswith(DOCS_PATHS) else NO_CONTENT_POLICY


def _request_id(scope: Scope) -> bytes:
    """Return the client's request id if it is short and printable ASCII, else a new one."""
    value = dict(scope["headers"]).get(b"x-request-id", b"")
    valid = 0 < len(value) <= 128 and value.isascii() and value.decode("ascii", "replace").isprintable()
    return value if valid else uuid.uuid4().hex.encode()
