"""All errors of the server in one class tree. Each class defines its HTTP status."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class SparseRMError(Exception):
    """Base error: a message for people, the request field in `param`, and a machine-readable `code`.

    `item` is the index of the item that failed; callers that know the field of each item set `param` from it.
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
    """The input cannot be scored. Repeating the request does not help."""

    status = 422
    type = "invalid_request_error"


class MalformedRequest(SparseRMError):
    """The request body is not valid JSON."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(SparseRMError):
    """The request has no API key that this server knows."""

    status = 401
    type = "authentication_error"


class Forbidden(SparseRMError):
    """The API key is valid, but its role does not allow this request."""

    status = 403
    type = "permission_error"


class NotFound(SparseRMError):
    """The model, latent or route does not exist."""

    status = 404
    type = "not_found_error"


class RequestTimeout(SparseRMError):
    """The client took too long to send the request."""

    status = 408
    type = "timeout_error"


class Conflict(SparseRMError):
    """The request conflicts with the current state of the server. Nothing was changed."""

    status = 409
    type = "conflict_error"


class BodyTooLarge(SparseRMError):
    """The request body is larger than the configured limit."""

    status = 413
    type = "invalid_request_error"


@dataclass
class Overloaded(SparseRMError):
    """The request was not, or would not be, finished before its timeout. The client may retry later."""

    retry_after_s: int = 1

    status = 429
    type = "overloaded_error"


@dataclass
class ServiceUnavailable(SparseRMError):
    """The server is starting, shutting down, or its device failed. The client may retry later."""

    retry_after_s: int = 5

    status = 503
    type = "unavailable_error"


class DeviceLost(SparseRMError):
    """The device stopped computing or computes wrong numbers. Only a new process can recover."""


class NonFiniteScore(SparseRMError):
    """The backbone produced NaN or infinity for this item, so it has no valid reward."""


class BundleError(SparseRMError):
    """A bundle on disk must not be served. The message names the mismatch."""


class UnprotectedServer(SparseRMError):
    """With these settings anyone could use the server. The message names the setting that permits it."""


class SourceError(SparseRMError):
    """A backbone could not be found, downloaded or verified."""


class DataError(SparseRMError):
    """A row of a data file is invalid. The message names the file and line."""


class MissingExtra(SparseRMError):
    """A package of an optional extra is not installed. The message names the package and the extra."""
