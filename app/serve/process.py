"""The process that serves the app: its sockets, its signals, and its exit status.

It ends on a signal, or with EXIT_DEVICE_LOST when the device is lost, so that its supervisor restarts it.
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
    """Raise the limit of open files to the allowed maximum; call it before anything is loaded."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def run(app: FastAPI, settings: Settings, socket_path: Path | None = None) -> int:
    """Serve the app until a signal arrives or the device is lost; return the exit status.

    It listens on the host and port of the settings, or on a Unix socket if one is given.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=str(socket_path) if socket_path else None,
            forwarded_allow_ips="*" if socket_path else None,
            loop="asyncio",
            ws="none",
            http=type("TimeoutProtocol", (HeaderTimeoutProtocol,), {"timeout_s": settings.client_timeout_s}),
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
    """HTTP/1.1 protocol that closes a connection if the headers of its next request do not come in time."""

    timeout_s = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer when a client connects."""
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Start the timer when a request is awaited; stop it when its headers are complete."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer when the client disconnects."""
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request; close the connection if the rest of a refused body has not arrived."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._update_timer()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def _update_timer(self) -> None:
        """Run the timer while the headers of a request are incomplete."""
        awaiting_headers = self.conn.their_state is h11.IDLE
        if awaiting_headers and self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.abort)
        elif not awaiting_headers and self._timer:
            self._timer.cancel()
            self._timer = None
