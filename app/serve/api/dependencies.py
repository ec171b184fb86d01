"""Between a request and the scorer, for every dialect: on which terms, which model, does anybody wait."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Depends, Header, Request

from app.serve.api.request_schemas import Place
from app.serve.batching.service import Outcome, Scorer
from app.serve.middleware.auth import PATH_MODEL
from app.serve.middleware.limits import NOTE, unless_gone
from app.types import ANONYMOUS_CALLER, Item, RequestContext, ScoreOptions


def scorer(request: Request) -> Scorer:
    """What scores for this server."""
    found: Scorer = request.app.state.scorer
    return found


TheScorer = Annotated[Scorer, Depends(scorer)]


def terms(
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
    patience = timeout_s or request.app.state.settings.timeout_s
    host = request.client.host if request.client else ""
    found = RequestContext(caller, host, priority == "urgent", patience)
    request.state.terms = found
    return found


TheTerms = Depends(terms)


def meant(request: Request, named: str | None, *, lenient: bool = False) -> str:
    """The model a request is about: by its body, else by its path, else the default.

    A name that is not served is an error, unless the path names a model or the dialect sends any name.
    """
    by_path = request.scope.get(PATH_MODEL)
    if named and (named in scorer(request).engine.names or not (by_path or lenient)):
        return named
    return by_path or str(request.app.state.default_model)


async def outcome(
    request: Request, placed: Sequence[tuple[Item, Place]], ask: ScoreOptions, *, truncate: bool
) -> Outcome:
    """Score what a request asks for, as long as it waits; what is worth logging is noted."""
    note = request.scope.setdefault(NOTE, {})
    note |= {"models": ",".join(ask.models), "items": len(placed), "caller": request.state.terms.caller}
    work = scorer(request).score(placed, ask, request.state.terms, truncate=truncate)
    found = await unless_gone(request, work)
    note |= {
        "tokens": sum(len(one.ids) for one in found.encoded),
        "computed_tokens": found.computed_tokens,
        **timings(found),
    }
    return found


def timings(found: Outcome) -> dict[str, float]:
    """How long the stages of a request took."""
    return {
        "encode_ms": round(found.encode_s * 1e3, 3),
        "wait_ms": round(found.wait_s * 1e3, 3),
        "device_ms": round(found.device_s * 1e3, 3),
    }
