"""Shared by the native API and all adapters: read a request's context, resolve its model, score its items."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Depends, Header, Request

from app.serve.api.request_schemas import InputLocation
from app.serve.api.response_schemas import TimingsSchema
from app.serve.batching.request_context import ANONYMOUS_CALLER, RequestContext
from app.serve.batching.service import ScoringResult, ScoringService
from app.serve.middleware.auth import PATH_MODEL_KEY
from app.serve.middleware.limits import LOG_FIELDS_KEY, cancel_on_disconnect
from app.types import Item, ScoreOptions


def get_scoring_service(request: Request) -> ScoringService:
    """Return the scoring service of this server."""
    service: ScoringService = request.app.state.scoring_service
    return service


ScoringServiceDependency = Annotated[ScoringService, Depends(get_scoring_service)]


def read_request_context(
    request: Request,
    caller: Annotated[
        str,
        Header(
            alias="X-SparseRM-Caller", pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="Name of the caller, for drift per caller and for fairness between callers.",
        ),
    ] = ANONYMOUS_CALLER,
    priority: Annotated[
        Literal["normal", "urgent"],
        Header(alias="X-SparseRM-Priority", description="Urgent requests overtake most normal ones."),
    ] = "normal",
    timeout_s: Annotated[
        float | None,
        Header(
            alias="X-SparseRM-Timeout", gt=0, le=3600,
            description="Seconds this request may take; it is refused if it cannot finish in time.",
        ),
    ] = None,
) -> RequestContext:  # fmt: skip
    """Return the context that a request's headers define; `request.state.context` holds it for the route."""
    timeout = timeout_s or request.app.state.settings.request_timeout_s
    host = request.client.host if request.client else ""
    context = RequestContext(caller, host, priority == "urgent", timeout)
    request.state.context = context
    return context


RequestContextDependency = Depends(read_request_context)


def resolve_model(request: Request, requested: str | None, *, allow_unknown: bool = False) -> str:
    """Return the model that a request's body names, or else its path, or else the default model.

    A model in the body that is not served is returned too, so that scoring refuses it. It is ignored if the
    path names a model, or with `allow_unknown`, for clients that always send some name.
    """
    path_model = request.scope.get(PATH_MODEL_KEY)
    if requested:
        served = requested in get_scoring_service(request).engine.model_names
        if served or not (path_model or allow_unknown):
            return requested
    return path_model or str(request.app.state.default_model)


async def score_request(
    request: Request,
    located_items: Sequence[tuple[Item, InputLocation]],
    options: ScoreOptions,
    *,
    truncate: bool,
) -> ScoringResult:
    """Score the items of a request and add its log fields; stop if the client disconnects."""
    context: RequestContext = request.state.context
    log_fields = request.scope.setdefault(LOG_FIELDS_KEY, {})
    log_fields |= {"models": ",".join(options.models), "items": len(located_items), "caller": context.caller}
    work = get_scoring_service(request).score(located_items, options, context, truncate=truncate)
    result = await cancel_on_disconnect(request, work)
    log_fields |= {
        "tokens": sum(len(item.encoded.ids) for item in result.items),
        "computed_tokens": result.computed_tokens,
        **build_timings(result).model_dump(),
    }
    return result


def build_timings(result: ScoringResult) -> TimingsSchema:
    """Return how long the stages of a request took."""
    return TimingsSchema(
        encode_ms=round(result.encode_s * 1e3, 3),
        wait_ms=round(result.wait_s * 1e3, 3),
        device_ms=round(result.device_s * 1e3, 3),
    )
