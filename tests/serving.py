"""A tiny server in this process, spoken to through httpx."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from prometheus_client import CollectorRegistry

from app.model.engine import Engine
from app.serve.server import create_app
from app.settings import Settings


@asynccontextmanager
async def server(engine: Engine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The app after its start-up, and a client for it."""
    app = create_app(engine, settings, CollectorRegistry())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
