"""The HTTP gateway in front of several servers: most requests go to one of them, some to all.

A request is read completely before it is forwarded, and so is the response. If a server ends meanwhile, the
request is sent to another one and nothing is lost.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from app.errors import ServiceUnavailable, SparseRMError
from app.serve.api.error_handlers import install_error_handlers
from app.serve.metrics import Metrics
from app.serve.middleware.auth import RAW_PATH_KEY, add_middleware
from app.serve.middleware.limits import FORWARDED_KEY, REQUEST_ID_KEY, cancel_on_disconnect
from app.serve.multiprocess.merged_metrics import MergedMetrics
from app.settings import Settings

Headers = tuple[tuple[bytes, bytes], ...]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
READY, LOAD, METRICS, DRIFT = "/ready", "/load", "/metrics", "/v1/models/{id}/drift"
# Routes that every server answers and whose responses are merged.
MERGED_ROUTES = frozenset({READY, LOAD, METRICS, DRIFT})
# Request headers that belong to the caller's connection, or that the gateway sets itself.
DROPPED_REQUEST_HEADERS = frozenset({
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id",
})  # fmt: skip
# Response headers that are passed on; the gateway's middleware adds the headers of every response itself.
FORWARDED_RESPONSE_HEADERS = frozenset({
    b"allow", b"content-type", b"etag", b"last-modified", b"location", b"retry-after",
})  # fmt: skip


class ProxiedRequest(NamedTuple):
    """A request that is forwarded to a server; `target` is its path and query as they were sent."""

    method: str
    target: bytes
    headers: Headers
    body: bytes = b""


class UpstreamResponse(NamedTuple):
    """The response of a server; header names are in lower case."""

    status: int
    headers: Headers
    body: bytes

    def to_response(self) -> Response:
        """Return the response for the caller, with the headers that are passed on."""
        response = Response(self.body, self.status)
        response.raw_headers += [
            (name, value) for name, value in self.headers if name in FORWARDED_RESPONSE_HEADERS
        ]
        return response

    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body)


class ServerPool(Protocol):
    """Servers with the same models and settings, any of which can answer a request."""

    def run(self) -> AbstractAsyncContextManager[None]:
        """Keep the servers running until the block ends."""

    @property
    def size(self) -> int:
        """The number of servers that should be running."""

    async def forward(self, request: ProxiedRequest) -> UpstreamResponse:
        """Return the response of the server that suits the request best."""

    async def broadcast(self, request: ProxiedRequest) -> Mapping[str, UpstreamResponse]:
        """Return the responses of all servers that are running, by server name."""

    async def change_models(self, request: ProxiedRequest) -> UpstreamResponse:
        """Apply a request that changes the served models to all servers, and to those started later."""


class Gateway:
    """The routes of the gateway."""

    def __init__(self, pool: ServerPool, registry: CollectorRegistry) -> None:
        self._pool = pool
        self._metrics = MergedMetrics(registry, MERGED_ROUTES)
        self.router = APIRouter()
        for path in ("/health", "/ping"):
            self.router.add_api_route(path, self.health)
        for path, route in (
            (READY, self.ready),
            (LOAD, self.load),
            (METRICS, self.metrics),
            (DRIFT, self.drift),
        ):
            self.router.add_api_route(path, route)
        for change in ("load", "reload", "unload"):
            path = f"/v1/models/{{id}}/{change}"
            self.router.add_api_route(path, self.change_models, methods=["POST"])
        self.router.add_api_route("/{path:path}", self.forward, methods=METHODS)

    async def health(self) -> dict[str, str]:
        """Return that the gateway's process is alive."""
        return {"status": "alive"}

    async def ready(self, request: Request) -> Response:
        """Return a server's response if all servers are ready."""

        def merge(responses: Mapping[str, UpstreamResponse]) -> Response:
            if len(responses) < self._pool.size:
                raise ServiceUnavailable("a server is starting; try again later", code="not_ready")
            return next(iter(responses.values())).to_response()

        return await self._merge(request, merge)

    async def load(self, request: Request) -> Response:
        """Return how many requests all servers are answering now."""

        def merge(responses: Mapping[str, UpstreamResponse]) -> Response:
            load = sum(response.json()["server_load"] for response in responses.values())
            return JSONResponse({"server_load": load})

        return await self._merge(request, merge)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics of all servers, merged as those of one."""

        def merge(responses: Mapping[str, UpstreamResponse]) -> Response:
            texts = {name: response.body.decode() for name, response in responses.items()}
            return Response(self._metrics.merge(texts), media_type=CONTENT_TYPE_LATEST)

        return await self._merge(request, merge)

    async def drift(self, request: Request) -> Response:
        """Return for each caller the drift that the server with most of its responses measured."""

        def merge(responses: Mapping[str, UpstreamResponse]) -> Response:
            merged, *others = (response.json() for response in responses.values())
            callers = merged["callers"]
            for caller, drift in (item for other in others for item in other["callers"].items()):
                if caller not in callers or callers[caller]["responses"] < drift["responses"]:
                    callers[caller] = drift
            return JSONResponse(merged)

        return await self._merge(request, merge)

    async def change_models(self, request: Request) -> Response:
        """Load, reload or unload a model on all servers."""
        return await _respond(request, self._pool.change_models(await _read(request)))

    async def forward(self, request: Request) -> Response:
        """Forward any other request to one server; it is cancelled when the caller disconnects."""
        return await _respond(
            request, cancel_on_disconnect(request, self._pool.forward(await _read(request)))
        )

    async def _merge(
        self, request: Request, merge: Callable[[Mapping[str, UpstreamResponse]], Response]
    ) -> Response:
        """Return the merged responses of all servers, or the first one that is not 200."""
        responses = await self._pool.broadcast(await _read(request))
        if not responses:
            raise ServiceUnavailable("no server is ready; try again later", code="not_ready")
        failures = (response.to_response() for response in responses.values() if response.status != 200)
        return next(failures, None) or merge(responses)


def create_gateway(pool: ServerPool, settings: Settings) -> FastAPI:
    """Return the gateway's app; the pool runs as long as the app."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    app = FastAPI(openapi_url=None, lifespan=lambda _: pool.run())
    app.include_router(Gateway(pool, registry).router)
    add_middleware(app, settings, metrics)
    install_error_handlers(app, metrics)
    app.state.device_lost = False
    return app


async def _read(request: Request) -> ProxiedRequest:
    """Read a request completely; the caller's address and the request's id are added as headers."""
    scope = request.scope
    query = scope["query_string"]
    target = scope[RAW_PATH_KEY] + (b"?" + query if query else b"")
    host = request.client.host if request.client else ""
    headers = [header for header in request.headers.raw if header[0] not in DROPPED_REQUEST_HEADERS]
    headers += [(b"x-request-id", scope[REQUEST_ID_KEY]), (b"x-forwarded-for", host.encode())]
    return ProxiedRequest(request.method, target, tuple(headers), await request.body())


async def _respond(request: Request, response: Awaitable[UpstreamResponse]) -> Response:
    """Return a server's response. The server counts the request; only the gateway's own errors count here."""
    request.scope[FORWARDED_KEY] = True
    try:
        return (await response).to_response()
    except SparseRMError:
        del request.scope[FORWARDED_KEY]
        raise
