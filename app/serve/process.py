"""The process around the app: its sockets, its signals, and how it ends.

It ends as it was asked to, by a signal, or with LOST when the device is lost, so that whatever supervises it
starts another.
"""

import asyncio
import logging
import os
import resource
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.settings import Settings

EXIT_DEVICE_LOST = 70
KEEP_ALIVE_S = 75
SOCKET_BACKLOG = 4096
log = logging.getLogger("sparserm")


def raise_open_file_limit() -> None:
    """Before anything is loaded: as many open files as may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run(app: FastAPI, settings: Settings, socket: Path | None = None) -> int:
    """Serve until a signal or the loss of the device, on a socket if one is given; the exit status."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=str(socket) if socket else None,
            forwarded_allow_ips="*" if socket else None,
            loop="asyncio",
            ws="none",
            http=type("Punctual", (HeaderTimeoutProtocol,), {"slow_s": settings.client_timeout_s}),
            log_config=None,
            log_level=settings.log_level,
            access_log=False,
            server_header=False,
            backlog=SOCKET_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
    )

    def shut_down() -> None:
        server.should_exit = True

    app.state.shut_down = shut_down
    server.run()
    if not app.state.device_lost:
        return 0
    logging.shutdown()
    os._exit(EXIT_DEVICE_LOST)  # a device that hangs holds its thread, and a normal exit would wait for it


class HeaderTimeoutProtocol(H11Protocol):
    """A protocol that lets go of connections whose next request does not begin, or its head does not end."""

    slow_s = 30.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody has connected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something was sent."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """They have gone."""
        super().connection_lost(exc)
        if self._late:
            self._late.cancel()

    def on_response_complete(self) -> None:
        """They have their answer."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch()
        if self.conn.their_state is h11.SEND_BODY:  # refused half-way: the rest is not waited for
            self.transport.close()

    def _watch(self) -> None:
        """The clock runs from the first moment of a head to its last."""
        heading = self.conn.their_state is h11.IDLE
        if heading and self._late is None:
            self._late = self.loop.call_later(self.slow_s, self.transport.abort)
        elif not heading and self._late:
            self._late.cancel()
            self._late = None
