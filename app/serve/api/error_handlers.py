"""A failure, said so that a caller knows what to mend; texts of a request are never repeated."""

import logging
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from app.errors import (
    BodyTooLarge,
    InvalidInput,
    MalformedRequest,
    NotFound,
    Overloaded,
    RequestTimeout,
    ServiceUnavailable,
    SparseRMError,
)
from app.serve.metrics import Metrics

log = logging.getLogger("sparserm")
MAX_MESSAGE_CHARACTERS = 500
VLLM_ERROR_TYPES = {
    400: "BadRequestError", 404: "NotFoundError", 413: "BadRequestError", 429: "RateLimitError",
    503: "ServiceUnavailableError",
}  # fmt: skip
TEI_ERROR_TYPES = {
    400: "Empty", 404: "Validation", 413: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded",
    503: "Unhealthy",
}  # fmt: skip


def error_body(error: SparseRMError) -> dict[str, Any]:
    """The OpenAI-style error body."""
    return {
        "error": {
            "message": truncate_message(error.message),
            "type": error.type,
            "param": None if error.param is None else truncate_message(error.param),
            "code": error.code,
        }
    }


def retry_after_header(error: SparseRMError) -> dict[str, str] | None:
    """The header that says when to come back."""
    if isinstance(error, Overloaded | ServiceUnavailable):
        return {"Retry-After": str(error.retry_after_s)}
    return None


def from_http_exception(error: HTTPException) -> SparseRMError:
    """What the framework refused, as one of ours."""
    known: dict[int, type[SparseRMError]] = {
        400: MalformedRequest, 404: NotFound, 408: RequestTimeout, 413: BodyTooLarge, 429: Overloaded,
    }  # fmt: skip
    return known.get(error.status_code, InvalidInput)(error.detail, code=f"http_{error.status_code}")


def from_validation_error(error: RequestValidationError) -> SparseRMError:
    """A validation error as one sentence about one field; the value itself is never repeated."""
    detail: dict[str, Any] = next(iter(error.errors()), {})
    kind, place = str(detail.get("type", "invalid")), detail.get("loc", ())
    if kind == "json_invalid":
        return MalformedRequest("the body is not JSON", "body", kind)
    parts = [part for part in place if part != "body"] if isinstance(place, tuple) else []
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    message = str(detail.get("msg", "invalid")).removeprefix("Value error, ")
    return InvalidInput(f"{param or 'body'}: {message}", param or "body", kind)


def install_error_handlers(app: Starlette, metrics: Metrics) -> None:
    """One envelope for whatever goes wrong."""

    def answer(error: SparseRMError) -> JSONResponse:
        metrics.errors.labels(error.code).inc()
        return JSONResponse(error_body(error), error.status, retry_after_header(error))

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return answer(error if isinstance(error, SparseRMError) else SparseRMError("internal error"))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return answer(from_validation_error(error))
        return await unexpected(_, error)

    async def http(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            return await unexpected(_, error)
        response = answer(from_http_exception(error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__)
        return answer(SparseRMError("internal error"))

    app.add_exception_handler(SparseRMError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def truncate_message(text: str) -> str:
    """No longer than a line or two, and fit for JSON."""
    return text[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()


def vllm_error(error: SparseRMError, _body: Any = None) -> tuple[int, Any]:
    """As vLLM says it: what cannot be read is 400, and the code is the status."""
    status = 400 if error.status == 422 else error.status
    param = None if error.param is None else truncate_message(error.param)
    kind = VLLM_ERROR_TYPES.get(status, "InternalServerError")
    return status, {
        "error": {"message": truncate_message(error.message), "type": kind, "param": param, "code": status}
    }


def tei_error(error: SparseRMError) -> tuple[int, Any]:
    """As text-embeddings-inference says it."""
    status = {400: 422, 500: 424}.get(error.status, error.status)
    return status, {
        "error": truncate_message(error.message),
        "error_type": TEI_ERROR_TYPES.get(status, "Backend"),
    }
