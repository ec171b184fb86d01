"""Authentication middleware, and the prefixes it removes from a path: /k/KEY/… and /m/MODEL/….

If the server has keys, every path except /health, /ready and the files of the web page requires one. Any key
grants /metrics; the rest requires at least the role `score`, and admin routes check for `admin` themselves.
Trainers that cannot send a header put the key into the path or into the user part of the URL; those that
cannot name a model put its name into the path.
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
from app.serve.api.error_handlers import build_error_body
from app.serve.metrics import Metrics
from app.serve.middleware.api_keys import ApiKeys, Role
from app.serve.middleware.limits import RequestLimits
from app.settings import Settings

PUBLIC_PATHS = frozenset({"/health", "/ready", web.INDEX_PATH})
# Keys in the ASGI scope.
ROLE_KEY = "sparserm.role"
PATH_MODEL_KEY = "sparserm.path_model"
RAW_PATH_KEY = "sparserm.raw_path"


class Authentication:
    """ASGI middleware that removes the prefixes of a path and checks the key."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: ApiKeys) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, prefixes = _split_prefixes(scope["path"])
        keys = [prefixes["k"]] if "k" in prefixes else _read_keys(Headers(scope=scope))
        role = self._keys.find_role(keys) if self._keys.required else Role.SCORE
        if not _is_public(path) and (error := _check_role(role, path)):
            self._metrics.errors.labels(error.code).inc()
            response = JSONResponse(build_error_body(error), error.status, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)
            return
        scope[RAW_PATH_KEY] = scope["raw_path"]
        scope.update(
            {"path": path, "raw_path": path.encode(), PATH_MODEL_KEY: prefixes.get("m"), ROLE_KEY: role}
        )
        await self._app(scope, receive, send)


def require_admin(request: Request) -> None:
    """Raise Forbidden unless the key grants the admin role; without keys no request has it."""
    if request.scope.get(ROLE_KEY) != Role.ADMIN:
        raise Forbidden(
            "this requires an admin key; create one with `sparserm keys new --role admin`", code="forbidden"
        )


def add_middleware(app: Starlette, settings: Settings, metrics: Metrics) -> None:
    """Add the request limits and, inside them, the authentication to an app."""
    app.add_middleware(Authentication, metrics=metrics, keys=ApiKeys(settings.keys, settings.api_keys_file))
    app.add_middleware(
        RequestLimits,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        max_buffered_bytes=settings.max_buffered_bytes,
        client_timeout_s=settings.client_timeout_s,
    )


def require_keys_beyond_loopback(settings: Settings) -> None:
    """Raise if other machines can reach the server without a key and the settings do not allow that."""
    if settings.keys or settings.api_keys_file or settings.allow_no_keys or _is_loopback(settings.host):
        return
    raise UnprotectedServer(
        f"other machines can reach {settings.host}: set SPARSERM_API_KEYS or SPARSERM_API_KEYS_FILE, "
        "or SPARSERM_ALLOW_NO_KEYS=true to serve requests without a key"
    )


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(web.ASSET_PREFIX)


def _check_role(role: Role | None, path: str) -> SparseRMError | None:
    """Return the error if the role does not grant the path."""
    if role is None:
        return Unauthorized("no key, or an unknown one: send Authorization: Bearer KEY", code="unauthorized")
    if role < Role.SCORE and path != "/metrics":
        return Forbidden("this key grants access to /metrics only", code="forbidden")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split_prefixes(path: str) -> tuple[str, dict[str, str]]:
    """Return the path without its /k/ and /m/ prefixes, and the values of these prefixes."""
    prefixes: dict[str, str] = {}
    parts = path.split("/")
    while len(parts) > 3 and parts[0] == "" and parts[1] in ("k", "m") and parts[1] not in prefixes:
        prefixes[parts[1]] = parts[2]
        parts = ["", *parts[3:]]
    return "/".join(parts), prefixes


def _read_keys(headers: Headers) -> list[str]:
    """Return the keys in the headers: X-API-Key, a Bearer token, or either half of Basic credentials."""
    keys = [headers["x-api-key"]] if "x-api-key" in headers else []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        keys.append(value.strip())
    if scheme.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            keys += base64.b64decode(value, validate=True).decode().split(":", 1)
    return keys
