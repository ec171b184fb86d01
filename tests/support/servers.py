"""A tiny server in this process, spoken to through httpx, or on a socket of its own."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app.reward.engine import Engine
from app.serve.application import create_app
from app.settings import Settings


@asynccontextmanager
async def server(engine: Engine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The app after its start-up, and a client for it."""
    async with serving(create_app(engine, settings, CollectorRegistry())) as client:
        yield client


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """An app after its start-up, and a client for it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@contextmanager
def listening(engine: Engine, settings: Settings) -> Iterator[str]:
    """The address of the app, on a socket."""
    app = create_app(engine, settings, CollectorRegistry())
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", backlog=2048))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()
