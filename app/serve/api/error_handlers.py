"""Turns errors into responses in the formats of OpenAI, vLLM and TEI, without any text of the request."""

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
from app.serve.api.response_schemas import ErrorDetailSchema, ErrorResponse
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


def build_error_detail(error: SparseRMError) -> ErrorDetailSchema:
    """Return an error as the schema that responses contain."""
    return ErrorDetailSchema(
        message=truncate_message(error.message),
        type=error.type,
        param=None if error.param is None else truncate_message(error.param),
        code=error.code,
    )


def build_error_body(error: SparseRMError) -> dict[str, Any]:
    """Return the body of an error in OpenAI's format."""
    return ErrorResponse(error=build_error_detail(error)).model_dump()


def build_retry_after_header(error: SparseRMError) -> dict[str, str] | None:
    """Return the Retry-After header of errors that a later request can avoid, otherwise None."""
    if isinstance(error, Overloaded | ServiceUnavailable):
        return {"Retry-After": str(error.retry_after_s)}
    return None


def convert_http_exception(error: HTTPException) -> SparseRMError:
    """Return an error of the web framework as a SparseRMError."""
    types: dict[int, type[SparseRMError]] = {
        400: MalformedRequest, 404: NotFound, 408: RequestTimeout, 413: BodyTooLarge, 429: Overloaded,
    }  # fmt: skip
    return types.get(error.status_code, InvalidInput)(error.detail, code=f"http_{error.status_code}")


def convert_validation_error(error: RequestValidationError) -> SparseRMError:
    """Return the first problem of a request as an error that names the field, without the field's value."""
    detail: dict[str, Any] = next(iter(error.errors()), {})
    code, location = str(detail.get("type", "invalid")), detail.get("loc", ())
    if code == "json_invalid":
        return MalformedRequest("the body is not JSON", "body", code)
    parts = [part for part in location if part != "body"] if isinstance(location, tuple) else []
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    message = str(detail.get("msg", "invalid")).removeprefix("Value error, ")
    return InvalidInput(f"{param or 'body'}: {message}", param or "body", code)


def install_error_handlers(app: Starlette, metrics: Metrics) -> None:
    """Make the app answer every error in OpenAI's format and count it."""

    def respond(error: SparseRMError) -> JSONResponse:
        metrics.errors.labels(error.code).inc()
        return JSONResponse(build_error_body(error), error.status, build_retry_after_header(error))

    async def handle_sparserm_error(_: Request, error: Exception) -> JSONResponse:
        return respond(error if isinstance(error, SparseRMError) else SparseRMError("internal error"))

    async def handle_validation_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return respond(convert_validation_error(error))
        return await handle_unexpected_error(request, error)

    async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            return await handle_unexpected_error(request, error)
        response = respond(convert_http_exception(error))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    async def handle_unexpected_error(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__)
        return respond(SparseRMError("internal error"))

    app.add_exception_handler(SparseRMError, handle_sparserm_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(Exception, handle_unexpected_error)


def truncate_message(text: str) -> str:
    """Return at most MAX_MESSAGE_CHARACTERS of a text, with characters that UTF-8 cannot encode replaced."""
    return text[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()


def build_vllm_error(error: SparseRMError, _: Any = None) -> tuple[int, Any]:
    """Return status and body of an error in vLLM's format: invalid input is 400, the code is the status.

    The second argument is the request's body, which every error builder receives; it is not used.
    """
    status = 400 if error.status == 422 else error.status
    param = None if error.param is None else truncate_message(error.param)
    error_type = VLLM_ERROR_TYPES.get(status, "InternalServerError")
    message = truncate_message(error.message)
    return status, {"error": {"message": message, "type": error_type, "param": param, "code": status}}


def build_tei_error(error: SparseRMError) -> tuple[int, Any]:
    """Return status and body of an error in the format of text-embeddings-inference."""
    status = {400: 422, 500: 424}.get(error.status, error.status)
    return status, {
        "error": truncate_message(error.message),
        "error_type": TEI_ERROR_TYPES.get(status, "Backend"),
    }
