"""One address for several servers: most requests go to one of them, some to all.

What is asked is read whole before it is passed on, and so is the answer: a server that ends meanwhile loses
nothing, because another one is asked.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from app.errors import Closing, SparseRMError
from app.serve.api.error_handlers import answer_errors
from app.serve.metrics import Metrics
from app.serve.middleware.auth import SENT, guard
from app.serve.middleware.limits import ELSEWHERE, ID, unless_gone
from app.serve.multiprocess.merged_metrics import Sums
from app.settings import Settings

Headers = tuple[tuple[bytes, bytes], ...]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
READY, LOAD, METRICS, DRIFT = "/ready", "/load", "/metrics", "/v1/models/{id}/drift"
SHARED = frozenset({READY, LOAD, METRICS, DRIFT})
OF_A_CONNECTION = frozenset({
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id",
})  # fmt: skip
KEPT = frozenset({b"allow", b"content-type", b"etag", b"last-modified", b"location", b"retry-after"})


class Asked(NamedTuple):
    """A request on its way; `target` is its path and query as they were sent."""

    method: str
    target: bytes
    headers: Headers
    body: bytes = b""


class Said(NamedTuple):
    """What a server answers."""

    status: int
    headers: Headers
    body: bytes

    @property
    def response(self) -> Response:
        """The same for the caller; what every answer carries is put on at the door."""
        response = Response(self.body, self.status)
        response.raw_headers += [(name, value) for name, value in self.headers if name in KEPT]
        return response


class Peers(Protocol):
    """Servers that answer alike."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keep them running, from the start of the app to its end."""

    @property
    def number(self) -> int:
        """How many there should be."""

    async def one(self, asked: Asked) -> Said:
        """The answer of whichever suits best."""

    async def each(self, asked: Asked) -> Mapping[str, Said]:
        """The answers of all that are there, by their names."""

    async def change(self, asked: Asked) -> Said:
        """Have all of them change what they serve, and those that come later."""


class Front:
    """The routes before several servers."""

    def __init__(self, peers: Peers, registry: CollectorRegistry) -> None:
        self._peers = peers
        self._sums = Sums(registry, SHARED)
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
            self.router.add_api_route(f"/v1/models/{{id}}/{change}", self.change, methods=["POST"])
        self.router.add_api_route("/{path:path}", self.one, methods=METHODS)

    async def health(self) -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    async def ready(self, request: Request) -> Response:
        """All of them are ready."""

        def join(said: Mapping[str, Said]) -> Response:
            if len(said) < self._peers.number:
                raise Closing("a server is starting", code="not_ready")
            return next(iter(said.values())).response

        return await self._joined(request, join)

    async def load(self, request: Request) -> Response:
        """Requests being answered now, by all."""

        def join(said: Mapping[str, Said]) -> Response:
            return JSONResponse({"server_load": sum(_read(one)["server_load"] for one in said.values())})

        return await self._joined(request, join)

    async def metrics(self, request: Request) -> Response:
        """The series of all, as of one."""

        def join(said: Mapping[str, Said]) -> Response:
            told = self._sums.told({name: one.body.decode() for name, one in said.items()})
            return Response(told, media_type=CONTENT_TYPE_LATEST)

        return await self._joined(request, join)

    async def drift(self, request: Request) -> Response:
        """Of each caller, what the server says that has heard most of it."""

        def join(said: Mapping[str, Said]) -> Response:
            first, *others = map(_read, said.values())
            for caller, window in (item for other in others for item in other["callers"].items()):
                known = first["callers"].get(caller)
                if known is None or known["responses"] < window["responses"]:
                    first["callers"][caller] = window
            return JSONResponse(first)

        return await self._joined(request, join)

    async def change(self, request: Request) -> Response:
        """All of them change."""
        return await _elsewhere(request, self._peers.change(await _asked(request)))

    async def one(self, request: Request) -> Response:
        """Whatever else there is, one of them answers; what nobody waits for any more is dropped."""
        return await _elsewhere(request, unless_gone(request, self._peers.one(await _asked(request))))

    async def _joined(self, request: Request, join: Callable[[Mapping[str, Said]], Response]) -> Response:
        """What all say, as one; or what is wrong with one of them."""
        said = await self._peers.each(await _asked(request))
        if not said:
            raise Closing("no server is ready", code="not_ready")
        wrong = (one.response for one in said.values() if one.status != 200)
        return next(wrong, None) or join(said)


def create_front(peers: Peers, settings: Settings) -> FastAPI:
    """An app that passes on what it is asked; its lifespan runs the servers."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    app = FastAPI(openapi_url=None, lifespan=lambda _: peers.running())
    app.include_router(Front(peers, registry).router)
    guard(app, settings, metrics)
    answer_errors(app, metrics)
    app.state.lost = False
    return app


async def _asked(request: Request) -> Asked:
    scope = request.scope
    query = scope["query_string"]
    target = scope[SENT] + (b"?" + query if query else b"")
    host = request.client.host if request.client else ""
    headers = [item for item in request.headers.raw if item[0] not in OF_A_CONNECTION]
    headers += [(b"x-request-id", scope[ID]), (b"x-forwarded-for", host.encode())]
    return Asked(request.method, target, tuple(headers), await request.body())


async def _elsewhere(request: Request, work: Awaitable[Said]) -> Response:
    """What is answered by a server is counted there, and only refusals are counted here."""
    request.scope[ELSEWHERE] = True
    try:
        return (await work).response
    except SparseRMError:
        del request.scope[ELSEWHERE]
        raise


def _read(said: Said) -> Any:
    return json.loads(said.body)
