"""The server in this process: called through httpx in memory, or listening on a socket."""

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
async def open_client(engine: Engine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Start an app for the engine; yield an in-memory client."""
    async with open_app_client(create_app(engine, settings, CollectorRegistry())) as client:
        yield client


@asynccontextmanager
async def open_app_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Start the app; yield an in-memory client."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@contextmanager
def run_server(engine: Engine, settings: Settings) -> Iterator[str]:
    """Run the server on a free port in a thread; yield its URL."""
    app = create_app(engine, settings, CollectorRegistry())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", backlog=2048))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
