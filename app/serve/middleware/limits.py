"""What every request passes: an id, a clock, limits on its body, headers of caution, and one line in the log.

Plain ASGI, so bodies stream. Clients that stop sending or reading are let go.
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

T = TypeVar("T")
log = logging.getLogger("sparserm.request")
LOG_FIELDS_KEY = "sparserm.note"
REQUEST_ID_KEY = "sparserm.id"
FORWARDED_KEY = "sparserm.elsewhere"
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
    """Middleware around the whole app."""

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
        self._limit = max_body_bytes
        self._most_held = max_buffered_bytes
        self._slow_s = client_timeout_s
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = time.perf_counter(), 499
        request_id = _request_id(scope)
        scope[REQUEST_ID_KEY] = request_id
        body = BodyReader(self, scope, receive)

        async def sent(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], *_headers(scope, request_id)]
            await self.in_time(send(message))

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, body.receive, sent)
        finally:
            self._held -= body.bytes
            self._metrics.in_flight.dec()
            self._tell(scope, code, request_id, time.perf_counter() - started)

    async def in_time(self, step: Awaitable[T]) -> T:
        """A step that is up to the client."""
        return await asyncio.wait_for(step, self._slow_s)

    def take(self, size: int, so_far: int) -> None:
        """Hold so many bytes more of a body, if it may be that long."""
        if so_far + size > self._limit:
            raise HTTPException(413, f"the body is larger than {self._limit} bytes")
        if self._held + size > self._most_held:
            raise HTTPException(429, "too many bytes of requests are held in memory", {"Retry-After": "1"})
        self._held += size

    def _tell(self, scope: Scope, code: int, request_id: bytes, seconds: float) -> None:
        if FORWARDED_KEY in scope:  # counted where it was answered
            return
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, scope["method"], str(code)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        facts = {
            "id": request_id.decode("ascii"),
            "method": scope["method"],
            "route": route,
            "status": code,
            "ms": round(seconds * 1e3, 3),
            **scope.get(LOG_FIELDS_KEY, {}),
        }
        log.info("request", extra={"facts": facts})


class BodyReader:
    """The body of one request as it comes in: counted, and waited for only so long."""

    def __init__(self, door: RequestLimits, scope: Scope, receive: Receive) -> None:
        self.bytes = 0
        self._door = door
        self._receive = receive
        self._complete = False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0

    async def receive(self) -> Message:
        """The next part, or, when all has come, word that the client has gone."""
        if self._complete:
            return await self._receive()
        try:
            message: dict[str, Any] = dict(await self._door.in_time(self._receive()))
        except TimeoutError as error:
            raise HTTPException(408, "the body did not come in time") from error
        part = len(message.get("body", b""))
        self._door.take(part, max(self.bytes, self._declared - part))
        self.bytes += part
        self._complete = not message.get("more_body", False)
        return message


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or drop it as soon as nobody waits for the answer."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        gone.cancel()
        task.cancel()


def _headers(scope: Scope, request_id: bytes) -> list[tuple[bytes, bytes]]:
    """What every answer carries."""
    policy = _policy(scope["path"])
    return [(b"x-request-id", request_id), (b"content-security-policy", policy.encode()), *SECURITY_HEADERS]


def _policy(path: str) -> str:
    """Pages may load what they are made of, everything else nothing."""
    if path == web.INDEX_PATH:
        return PAGE_POLICY
    return DOCS_POLICY if path.startswith(DOCS_PATHS) else NO_CONTENT_POLICY


def _request_id(scope: Scope) -> bytes:
    """The caller's id if it sent a sane one, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    sane = 0 < len(given) <= 128 and given.isascii() and given.decode("ascii", "replace").isprintable()
    return given if sane else uuid.uuid4().hex.encode()
