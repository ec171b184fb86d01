"""One tree of failures, and the only place where a failure meets an HTTP status."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class SparseRMError(Exception):
    """A failure: a sentence for the reader, the field it is about, a code for machines.

    `item` says which exchange of a list failed, for callers that know where it came from.
    """

    message: str
    param: str | None = None
    code: str = "internal_error"
    item: int | None = None

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"

    def __str__(self) -> str:
        return self.message


class InvalidInput(SparseRMError):
    """Never: this input cannot be scored as it stands."""

    status = 422
    type = "invalid_request_error"


class Malformed(SparseRMError):
    """The body is not JSON."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(SparseRMError):
    """No key that this server knows."""

    status = 401
    type = "authentication_error"


class Forbidden(SparseRMError):
    """A known key that may do less than this."""

    status = 403
    type = "permission_error"


class NotFound(SparseRMError):
    """No such model, latent or route."""

    status = 404
    type = "not_found_error"


class TooSlow(SparseRMError):
    """The request did not arrive in time."""

    status = 408
    type = "timeout_error"


class Conflict(SparseRMError):
    """What is asked does not fit what is served now; nothing was changed."""

    status = 409
    type = "conflict_error"


class TooLarge(SparseRMError):
    """The body is larger than this server reads."""

    status = 413
    type = "invalid_request_error"


@dataclass
class Overloaded(SparseRMError):
    """Not now: it could not be done in the caller's time, or was not."""

    retry_after_s: int = 1

    status = 429
    type = "overloaded_error"


@dataclass
class Closing(SparseRMError):
    """Not now: the server is starting, draining or dead."""

    retry_after_s: int = 5

    status = 503
    type = "unavailable_error"


class DeviceLost(SparseRMError):
    """The device does not compute any more, or computes wrongly; only a new process helps."""


class NonFinite(SparseRMError):
    """The backbone produced NaN or infinity for this item; its reward would be a lie."""


class BundleError(SparseRMError):
    """A reward model on disk that must not be served; the message names what differs."""


class Exposed(SparseRMError):
    """Settings that would open the server to strangers; the message says how to mean it."""


class SourceError(SparseRMError):
    """A backbone that could not be found, fetched or verified."""


class DataError(SparseRMError):
    """A row of training data that cannot be read; the message names file and line."""
