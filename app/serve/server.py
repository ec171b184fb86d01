"""create_app: engine, settings and registry in; an ASGI app out. Wiring, lifespan, error answers."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from app.errors import SourceError, SparseRMError
from app.model.engine import Engine
from app.serve import adapters, operating, page, routes
from app.serve.batcher import Batcher
from app.serve.door import Door
from app.serve.failures import envelope, first_problem, from_http, waiting
from app.serve.fleet import Fleet
from app.serve.gate import Gate
from app.serve.keys import Keys
from app.serve.metrics import Metrics
from app.serve.scoring import Scorer
from app.settings import Settings

log = logging.getLogger("sparserm")


def create_app(engine: Engine, settings: Settings, registry: CollectorRegistry) -> FastAPI:
    """The server around one engine, whose probes must pass; its lifespan runs the batcher."""
    engine.verify()
    metrics = Metrics(registry)
    default = settings.default_model or next(iter(engine.models))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = app.state.engine
        batcher = Batcher(
            metrics,
            batch_tokens=settings.batch_tokens,
            queue_tokens=settings.queue_tokens,
            hang_s=settings.hang_s,
            give_up=lambda: _lose(app),
        )
        async with batcher:
            scorer = Scorer(engine, batcher, metrics, max_items=settings.max_items)
            app.state.scorer = scorer
            app.state.fleet = Fleet(scorer, batcher, metrics, settings, default)
            app.state.engine = engine = None  # what a reload replaces must be free to go
            yield

    app = FastAPI(
        title="SparseRM",
        version=version("sparserm"),
        description="Reward models one can read: every reward comes with the features that made it.",
        lifespan=lifespan,
    )
    app.state.engine, app.state.lost = engine, False
    app.state.registry, app.state.default_model = registry, default
    app.state.metrics, app.state.settings, app.state.give_up = metrics, settings, lambda: None
    for router in (page.router, routes.router, operating.router, operating.admin):
        app.include_router(router)
    adapters.add(app, settings.dialect_names)
    app.add_middleware(Gate, metrics=metrics, keys=Keys(settings.keys, settings.keys_file))
    app.add_middleware(
        Door,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        held_bytes=settings.held_bytes,
        slow_s=settings.slow_s,
    )
    if settings.otlp_endpoint:
        _trace(app, settings.otlp_endpoint)
    _answer_errors(app, metrics)
    return app


def _trace(app: FastAPI, endpoint: str) -> None:
    try:
        from app.serve import traces
    except ImportError as error:
        raise SourceError("SPARSERM_OTLP_ENDPOINT wants the extra: pip install 'sparserm[otel]'") from error
    traces.trace(app, traces.exporting(endpoint))


def _lose(app: FastAPI) -> None:
    """The device is lost: say so, and end the process that runs this app."""
    app.state.lost = True
    app.state.give_up()


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """One envelope for whatever goes wrong."""

    def answer(error: SparseRMError) -> JSONResponse:
        metrics.errors.labels(error.code).inc()
        return JSONResponse(envelope(error), error.status, waiting(error))

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return answer(error if isinstance(error, SparseRMError) else SparseRMError("internal error"))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return answer(first_problem(error))
        return await unexpected(_, error)

    async def http(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            return await unexpected(_, error)
        response = answer(from_http(error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__)
        return answer(SparseRMError("internal error"))

    app.add_exception_handler(SparseRMError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
