"""Who is who: keys and the roles they open, kept as digests.

They come from SPARSERM_API_KEYS and from a file that is read again when it changes, so keys are rotated
without a restart. Keys are random and long, so a plain SHA-256 hides them well enough.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from enum import IntEnum
from pathlib import Path

from app.errors import Exposed

log = logging.getLogger("sparserm")
LOOK_AGAIN_S = 1.0
LINE = re.compile(r"(metrics|score|admin) ([0-9a-f]{64})( [^\n]*)?")


class Role(IntEnum):
    """What a key opens; each role opens what stands before it, too."""

    METRICS = 1
    SCORE = 2
    ADMIN = 3


class Keys:
    """The keys of one server."""

    def __init__(self, given: tuple[str, ...], file: Path | None = None) -> None:
        self._given = [_given(key) for key in given]
        self._file = file
        self._read: list[tuple[Role, bytes]] = []
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        if file is not None:
            self._stamp, self._read = _stamp(file), read(file)

    @property
    def any(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self._given) or self._file is not None

    def role(self, keys: list[str]) -> Role | None:
        """The most that any of these keys opens; each is compared with every known one, in constant time."""
        self._look()
        digests = [hashlib.sha256(key.encode(errors="replace")).digest() for key in keys]
        known = [*self._given, *self._read]
        found = [role for role, one in known for digest in digests if hmac.compare_digest(one, digest)]
        return max(found, default=None)

    def _look(self) -> None:
        """Read the file again if it has changed; one that cannot be read changes nothing."""
        if self._file is None or time.monotonic() - self._looked < LOOK_AGAIN_S:
            return
        self._looked = time.monotonic()
        try:
            if (stamp := _stamp(self._file)) != self._stamp:
                self._read, self._stamp = read(self._file), stamp
                log.info("keys read again: %d", len(self._read))
        except (OSError, Exposed) as error:
            log.error("the key file is not read again: %s", error)  # noqa: TRY400 - a trace would say no more


def new(role: Role, name: str = "") -> tuple[str, str]:
    """A fresh key, and the line of a key file that lets it in."""
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f"{role.name.lower()} {digest} {' '.join(name.split())}".rstrip()


def read(file: Path) -> list[tuple[Role, bytes]]:
    """The keys in a file: a role, a SHA-256 and a name on each line; # begins a comment."""
    found: list[tuple[Role, bytes]] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        matched = LINE.fullmatch(stripped)
        if matched is None:
            raise Exposed(
                f"{file.name}, line {number}: not ROLE SHA256 NAME; `sparserm keys new` makes such a line"
            )
        found.append((Role[matched[1].upper()], bytes.fromhex(matched[2])))
    return found


def _given(key: str) -> tuple[Role, bytes]:
    """A key from a setting: for scoring, unless it says admin= or metrics= in front."""
    name, _, rest = key.partition("=")
    role = {"admin": Role.ADMIN, "metrics": Role.METRICS, "score": Role.SCORE}.get(name if rest else "")
    secret = rest if role else key
    return role or Role.SCORE, hashlib.sha256(secret.encode()).digest()


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
