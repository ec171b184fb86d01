"""Who may come in, and what a path says before the route begins: /k/KEY/… and /m/MODEL/….

Everything but /health, /ready and the page's own files wants a key where there are any: /metrics any key, the
rest one that may score; admin routes ask for more themselves.
Trainers that cannot send a header carry the key in the path or in the URL's user part; those that cannot name
a model carry that in the path too.
"""

import base64
import binascii
import ipaddress
from contextlib import suppress

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app import web
from app.errors import Forbidden, SparseRMError, Unauthorized, UnprotectedServer
from app.serve.api.error_handlers import error_body
from app.serve.metrics import Metrics
from app.serve.middleware.api_keys import ApiKeys, Role
from app.serve.middleware.limits import RequestLimits
from app.settings import Settings

PUBLIC_PATHS = frozenset({"/health", "/ready", web.INDEX_PATH})
ROLE_KEY = "sparserm.role"
PATH_MODEL_KEY = "sparserm.model"
RAW_PATH_KEY = "sparserm.sent"


class Authentication:
    """Middleware that reads the prefixes of a path and checks the key."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: ApiKeys) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, named = _prefixes(scope["path"])
        given = [named["k"]] if "k" in named else _carried(Headers(scope=scope))
        role = self._keys.role_of(given) if self._keys.required else Role.SCORE
        if not _is_open(path) and (error := _refusal(role, path)):
            self._metrics.errors.labels(error.code).inc()
            refusal = JSONResponse(error_body(error), error.status, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        scope[RAW_PATH_KEY] = scope["raw_path"]
        scope.update(
            {"path": path, "raw_path": path.encode(), PATH_MODEL_KEY: named.get("m"), ROLE_KEY: role}
        )
        await self._app(scope, receive, send)


def require_admin(request: Request) -> None:
    """For routes that change what is served; without keys there is no admin."""
    if request.scope.get(ROLE_KEY) != Role.ADMIN:
        raise Forbidden("this wants an admin key (`sparserm keys new --role admin`)", code="forbidden")


def add_middleware(app: Starlette, settings: Settings, metrics: Metrics) -> None:
    """Put the door and, behind it, the gate before an app's routes."""
    app.add_middleware(Authentication, metrics=metrics, keys=ApiKeys(settings.keys, settings.api_keys_file))
    app.add_middleware(
        RequestLimits,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        held_bytes=settings.max_buffered_bytes,
        slow_s=settings.client_timeout_s,
    )


def require_keys_beyond_loopback(settings: Settings) -> None:
    """Beyond loopback there must be a key, unless it is said twice that there shall be none."""
    if settings.keys or settings.api_keys_file or settings.allow_no_keys or _is_loopback(settings.host):
        return
    raise UnprotectedServer(
        f"{settings.host} can be reached by others: set SPARSERM_API_KEYS or SPARSERM_API_KEYS_FILE, "
        "or SPARSERM_ALLOW_NO_KEYS=true if everybody may ask"
    )


def _is_open(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(web.ASSET_PREFIX)


def _refusal(role: Role | None, path: str) -> SparseRMError | None:
    if role is None:
        return Unauthorized("no key, or an unknown one: send Authorization: Bearer KEY", code="unauthorized")
    if role < Role.SCORE and path != "/metrics":
        return Forbidden("this key opens /metrics and nothing else", code="forbidden")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _prefixes(path: str) -> tuple[str, dict[str, str]]:
    """The route, and what stood before it under k and m."""
    named: dict[str, str] = {}
    parts = path.split("/")
    while len(parts) > 3 and parts[0] == "" and parts[1] in ("k", "m") and parts[1] not in named:
        named[parts[1]] = parts[2]
        parts = ["", *parts[3:]]
    return "/".join(parts), named


def _carried(headers: Headers) -> list[str]:
    """The keys in a request's headers: X-API-Key, Bearer, or either half of Basic."""
    found = [headers["x-api-key"]] if "x-api-key" in headers else []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(value.strip())
    if scheme.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            found += base64.b64decode(value, validate=True).decode().split(":", 1)
    return found
