"""create_app: engine, settings and registry in; an ASGI app out. Wiring, lifespan, error answers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app import web
from app.backbone.runtime import batch_size
from app.backbone.runtime.threads import apart, lanes
from app.errors import SourceError
from app.reward.engine import Engine
from app.serve import adapters
from app.serve.api import admin_routes, routes
from app.serve.api.error_handlers import answer_errors
from app.serve.batching.batcher import Batcher
from app.serve.batching.executor import Lanes
from app.serve.batching.service import Scorer
from app.serve.metrics import Metrics
from app.serve.middleware.auth import guard
from app.serve.model_manager import Fleet
from app.settings import Settings

log = logging.getLogger("sparserm")


def create_app(engine: Engine, settings: Settings, registry: CollectorRegistry) -> FastAPI:
    """The server around one engine, whose probes must pass; its lifespan runs the batcher."""
    apart(engine.verify)
    metrics = Metrics(registry)
    app = FastAPI(
        title="SparseRM",
        version=version("sparserm"),
        description="Reward models one can read: every reward comes with the features that made it.",
        lifespan=_lifespan,
    )
    app.state.engine, app.state.settings = engine, settings
    app.state.registry, app.state.metrics = registry, metrics
    app.state.default_model = settings.default_model or next(iter(engine.models))
    app.state.lost, app.state.give_up = False, lambda: None
    for router in (web.router, routes.router, admin_routes.router, admin_routes.admin):
        app.include_router(router)
    adapters.add(app, settings.dialect_names)
    guard(app, settings, metrics)
    if settings.otlp_endpoint:
        _trace(app, settings.otlp_endpoint)
    answer_errors(app, metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The batcher and what stands on it; the engine is handed over, so that a reload can let it go."""
    state = app.state
    if not state.settings.batch_tokens:
        found = await asyncio.to_thread(apart, partial(batch_size.budget, state.engine.backbone))
        log.info("passes of %d tokens", found)
        state.settings = state.settings.model_copy(update={"max_batch_tokens": found})
    settings: Settings = state.settings
    batcher = Batcher(
        state.metrics,
        batch_tokens=settings.max_batch_tokens,
        queue_tokens=settings.max_queued_tokens,
        lanes=Lanes(*lanes(settings.concurrent_batches, state.engine.backbone.device.type)),
        hang_s=settings.device_timeout_s,
        give_up=lambda: _lose(app),
    )
    async with batcher:
        state.scorer = Scorer(state.engine, batcher, state.metrics, max_items=settings.max_items)
        state.fleet = Fleet(state.scorer, batcher, state.metrics, settings, state.default_model)
        state.engine = None
        yield


def _trace(app: FastAPI, endpoint: str) -> None:
    try:
        from app.serve.middleware import tracing
    except ImportError as error:
        raise SourceError("SPARSERM_OTLP_ENDPOINT wants the extra: pip install 'sparserm[otel]'") from error
    tracing.trace(app, tracing.exporting(endpoint))


def _lose(app: FastAPI) -> None:
    """The device is lost: say so, and end the process that runs this app."""
    app.state.lost = True
    app.state.give_up()
