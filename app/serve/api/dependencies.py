"""Between a request and the scorer, for every dialect: on which terms, which model, does anybody wait."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Depends, Header, Request

from app.serve.api.request_schemas import InputLocation
from app.serve.batching.service import ScoringResult, ScoringService
from app.serve.middleware.auth import PATH_MODEL_KEY
from app.serve.middleware.limits import LOG_FIELDS_KEY, cancel_on_disconnect
from app.types import ANONYMOUS_CALLER, Item, RequestContext, ScoreOptions


def scorer(request: Request) -> ScoringService:
    """What scores for this server."""
    found: ScoringService = request.app.state.scoring_service
    return found


TheScorer = Annotated[ScoringService, Depends(scorer)]


def read_request_context(
    request: Request,
    caller: Annotated[
        str,
        Header(
            alias="X-SparseRM-Caller", pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="Who asks, for drift by caller and for fairness between callers.",
        ),
    ] = ANONYMOUS_CALLER,
    priority: Annotated[
        Literal["normal", "urgent"],
        Header(alias="X-SparseRM-Priority", description="Urgent requests pass most normal ones."),
    ] = "normal",
    timeout_s: Annotated[
        float | None,
        Header(
            alias="X-SparseRM-Timeout", gt=0, le=3600,
            description="Seconds this request may take; what cannot be done in time is refused.",
        ),
    ] = None,
) -> RequestContext:  # fmt: skip
    """The terms in a request's headers; also kept on the request, for dialects."""
    patience = timeout_s or request.app.state.settings.request_timeout_s
    host = request.client.host if request.client else ""
    found = RequestContext(caller, host, priority == "urgent", patience)
    request.state.terms = found
    return found


RequestContextDependency = Depends(read_request_context)


def resolve_model(request: Request, requested: str | None, *, allow_unknown: bool = False) -> str:
    """The model a request is about: by its body, else by its path, else the default.

    A name that is not served is an error, unless the path names a model or the dialect sends any name.
    """
    by_path = request.scope.get(PATH_MODEL_KEY)
    if requested and (requested in scorer(request).engine.model_names or not (by_path or allow_unknown)):
        return requested
    return by_path or str(request.app.state.default_model)


async def score_request(
    request: Request,
    located_items: Sequence[tuple[Item, InputLocation]],
    options: ScoreOptions,
    *,
    truncate: bool,
) -> ScoringResult:
    """Score what a request asks for, as long as it waits; what is worth logging is noted."""
    note = request.scope.setdefault(LOG_FIELDS_KEY, {})
    note |= {
        "models": ",".join(options.models),
        "items": len(located_items),
        "caller": request.state.terms.caller,
    }
    work = scorer(request).score(located_items, options, request.state.terms, truncate=truncate)
    found = await cancel_on_disconnect(request, work)
    note |= {
        "tokens": sum(len(item.encoded.ids) for item in found.items),
        "computed_tokens": found.computed_tokens,
        **stage_timings(found),
    }
    return found


def stage_timings(found: ScoringResult) -> dict[str, float]:
    """How long the stages of a request took."""
    return {
        "encode_ms": round(found.encode_s * 1e3, 3),
        "wait_ms": round(found.wait_s * 1e3, 3),
        "device_ms": round(found.device_s * 1e3, 3),
    }
