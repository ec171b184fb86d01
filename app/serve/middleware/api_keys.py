"""API keys and the roles they grant, stored as digests.

Keys come from SPARSERM_API_KEYS and from a file that is read again when it changes, so keys are rotated
without a restart. Keys are long and random, so a plain SHA-256 protects them sufficiently.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from enum import IntEnum
from pathlib import Path

from app.errors import UnprotectedServer

log = logging.getLogger("sparserm")
# How often the key file is checked for changes.
RELOAD_INTERVAL_S = 1.0
KEY_LINE = re.compile(r"(metrics|score|admin) ([0-9a-f]{64})( [^\n]*)?")


class Role(IntEnum):
    """What a key grants; each role includes the lower ones."""

    METRICS = 1
    SCORE = 2
    ADMIN = 3


class ApiKeys:
    """The API keys of one server."""

    def __init__(self, keys: tuple[str, ...], file: Path | None = None) -> None:
        self._setting_keys = [_parse_setting_key(key) for key in keys]
        self._file = file
        self._file_keys: list[tuple[Role, bytes]] = []
        self._file_version: tuple[int, int] | None = None
        self._last_check = 0.0
        if file is not None:
            self._file_version, self._file_keys = _file_version(file), read_key_file(file)

    @property
    def required(self) -> bool:
        """Whether requests must carry a key."""
        return bool(self._setting_keys) or self._file is not None

    def find_role(self, keys: list[str]) -> Role | None:
        """Return the highest role that any of these keys grants, or None if all are unknown.

        Each key is compared with every known one in constant time.
        """
        self._reload_file()
        digests = [hashlib.sha256(key.encode(errors="replace")).digest() for key in keys]
        known_keys = [*self._setting_keys, *self._file_keys]
        roles = [
            role
            for role, expected in known_keys
            for digest in digests
            if hmac.compare_digest(expected, digest)
        ]
        return max(roles, default=None)

    def _reload_file(self) -> None:
        """Read the file again if it has changed; if it cannot be read, the known keys stay valid."""
        if self._file is None or time.monotonic() - self._last_check < RELOAD_INTERVAL_S:
            return
        self._last_check = time.monotonic()
        try:
            if (version := _file_version(self._file)) != self._file_version:
                self._file_keys, self._file_version = read_key_file(self._file), version
                log.info("key file reloaded: %d keys", len(self._file_keys))
        except (OSError, UnprotectedServer) as error:
            log.error("the key file cannot be reloaded: %s", error)  # noqa: TRY400 - a traceback adds nothing


def generate_key(role: Role, name: str = "") -> tuple[str, str]:
    """Return a new key and its line for the key file."""
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f"{role.name.lower()} {digest} {' '.join(name.split())}".rstrip()


def read_key_file(file: Path) -> list[tuple[Role, bytes]]:
    """Read a key file: role, SHA-256 and name on each line; a line that starts with # is a comment."""
    keys: list[tuple[Role, bytes]] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = KEY_LINE.fullmatch(stripped)
        if match is None:
            raise UnprotectedServer(
                f"{file.name}, line {number}: not ROLE SHA256 NAME; `sparserm keys new` prints such a line"
            )
        keys.append((Role[match[1].upper()], bytes.fromhex(match[2])))
    return keys


def _parse_setting_key(key: str) -> tuple[Role, bytes]:
    """Parse a key of the setting: its role is SCORE unless it starts with admin= or metrics=."""
    name, _, rest = key.partition("=")
    role = {"admin": Role.ADMIN, "metrics": Role.METRICS, "score": Role.SCORE}.get(name if rest else "")
    secret = rest if role else key
    return role or Role.SCORE, hashlib.sha256(secret.encode()).digest()


def _file_version(file: Path) -> tuple[int, int]:
    """Return the modification time and size, by which a change of the file is detected."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size
