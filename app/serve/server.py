"""create_app: engine, settings and registry in; an ASGI app out. Wiring, lifespan, error answers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from app.errors import SparseRMError
from app.model.engine import Engine
from app.serve import adapters, routes
from app.serve.batcher import Batcher
from app.serve.door import Door
from app.serve.failures import envelope, first_problem, from_http, waiting
from app.serve.gate import Gate
from app.serve.metrics import Metrics
from app.serve.scoring import Scorer
from app.settings import Settings

log = logging.getLogger("sparserm")


def create_app(engine: Engine, settings: Settings, registry: CollectorRegistry) -> FastAPI:
    """The server around one engine; its lifespan runs the probes and the batcher."""
    metrics = Metrics(registry)
    _describe(engine, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(engine.verify)
        batcher = Batcher(
            engine, metrics, batch_tokens=settings.batch_tokens, queue_tokens=settings.queue_tokens
        )
        async with batcher:
            app.state.scorer = Scorer(engine, batcher, metrics, max_items=settings.max_items)
            yield

    app = FastAPI(
        title="SparseRM",
        version=version("sparserm"),
        description="Reward models one can read: every reward comes with the features that made it.",
        lifespan=lifespan,
    )
    app.state.registry = registry
    app.state.metrics, app.state.settings = metrics, settings
    app.state.default_model = settings.default_model or next(iter(engine.models))
    app.include_router(routes.router)
    adapters.add(app, settings.dialect_names)
    app.add_middleware(Gate, metrics=metrics, keys=settings.keys)
    app.add_middleware(Door, metrics=metrics, max_body_bytes=settings.max_body_bytes)
    _answer_errors(app, metrics)
    return app


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


def _describe(engine: Engine, metrics: Metrics) -> None:
    for name, model in engine.models.items():
        card = model.card
        metrics.info.labels(
            name, card.task, card.backbone, card.backbone_digest, card.sae_sha256, str(card.layer)
        ).set(1)
