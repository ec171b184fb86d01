"""Builds the ASGI application: routes, middleware, error handlers, and the batcher that its lifespan runs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app import web
from app.backbone.runtime import autotune
from app.backbone.runtime.threads import plan_concurrent_batches, run_in_temporary_thread
from app.errors import SourceError
from app.reward.engine import Engine
from app.reward.loading import find_default_model
from app.serve import adapters
from app.serve.api import admin_routes, routes
from app.serve.api.error_handlers import install_error_handlers
from app.serve.batching.batcher import Batcher
from app.serve.batching.executor import Executor
from app.serve.batching.service import ScoringService
from app.serve.metrics import Metrics
from app.serve.middleware.auth import add_middleware
from app.serve.model_manager import ModelManager
from app.settings import Settings

log = logging.getLogger("sparserm")


def create_app(engine: Engine, settings: Settings, registry: CollectorRegistry) -> FastAPI:
    """Build the server around one engine, whose probes must pass; the lifespan runs the batcher."""
    run_in_temporary_thread(engine.verify)
    metrics = Metrics(registry)
    app = FastAPI(
        title="SparseRM",
        version=version("sparserm"),
        description="Interpretable reward models: every reward comes with the features that explain it.",
        lifespan=_lifespan,
    )
    app.state.engine, app.state.settings = engine, settings
    app.state.registry, app.state.metrics = registry, metrics
    app.state.default_model = find_default_model(settings, engine.model_names)
    app.state.device_lost, app.state.shut_down = False, lambda: None
    for router in (web.router, routes.router, admin_routes.router, admin_routes.admin_router):
        app.include_router(router)
    adapters.add_dialects(app, settings.dialect_names)
    add_middleware(app, settings, metrics)
    if settings.otlp_endpoint:
        _add_tracing(app, settings.otlp_endpoint)
    install_error_handlers(app, metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the batcher, the scoring service and the model manager.

    The engine is moved from the app's state to the scoring service, so that a reload can free it.
    """
    state = app.state
    if not state.settings.max_batch_tokens:
        max_batch_tokens = await asyncio.to_thread(
            run_in_temporary_thread, partial(autotune.measure_batch_tokens, state.engine.backbone)
        )
        log.info("batches of %d tokens", max_batch_tokens)
        state.settings = state.settings.model_copy(update={"max_batch_tokens": max_batch_tokens})
    settings: Settings = state.settings
    batcher = Batcher(
        state.metrics,
        batch_tokens=settings.max_batch_tokens,
        queue_tokens=settings.max_queued_tokens,
        executor=Executor(
            *plan_concurrent_batches(settings.concurrent_batches, state.engine.backbone.device.type)
        ),
        device_timeout_s=settings.device_timeout_s,
        on_device_lost=lambda: _shut_down(app),
    )
    async with batcher:
        service = ScoringService(state.engine, batcher, state.metrics, max_items=settings.max_items)
        state.scoring_service = service
        state.model_manager = ModelManager(service, batcher, state.metrics, settings, state.default_model)
        state.engine = None
        yield


def _add_tracing(app: FastAPI, endpoint: str) -> None:
    try:
        from app.serve.middleware import tracing
    except ImportError as error:
        raise SourceError("SPARSERM_OTLP_ENDPOINT needs the extra: pip install 'sparserm[otel]'") from error
    tracing.add_tracing(app, tracing.create_exporter(endpoint))


def _shut_down(app: FastAPI) -> None:
    """Record that the device is lost, and end the process that runs this app."""
    app.state.device_lost = True
    app.state.shut_down()
