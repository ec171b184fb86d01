"""One file a dialect: what it sends → exchanges; rewards → what it reads; a route."""

from typing import Any

from fastapi import APIRouter, FastAPI

from app.errors import SourceError
from app.serve.adapters import (
    classify,
    embeddings,
    llamafactory,
    nemo_gym,
    openrlhf,
    pooling,
    rerank,
    score,
    slime,
    tei,
)
from app.serve.api.dependencies import RequestContextDependency

DIALECTS: dict[str, APIRouter] = {
    "openrlhf": openrlhf.router,
    "llamafactory": llamafactory.router,
    "slime": slime.router,
    "classify": classify.router,
    "pooling": pooling.router,
    "embeddings": embeddings.router,
    "score": score.router,
    "rerank": rerank.router,
    "tei": tei.router,
    "nemo-gym": nemo_gym.router,
}


ERROR_DESCRIPTIONS = {
    400: "Cannot be read.", 401: "No key, or an unknown one.", 403: "A key that opens less.",
    404: "No such model.", 408: "Sent too slowly.", 413: "Too large.", 422: "Cannot be scored.",
    424: "The backend failed.", 429: "Busy.", 500: "Failed.", 503: "Starting or closing.",
}  # fmt: skip
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": why, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, why in ERROR_DESCRIPTIONS.items()
}


def add_dialects(app: FastAPI, names: tuple[str, ...] = ("all",)) -> None:
    """Teach an app some dialects by name, or all."""
    for router in select_routers(names):
        app.include_router(router, responses=ERROR_RESPONSES, dependencies=[RequestContextDependency])


def select_routers(names: tuple[str, ...]) -> list[APIRouter]:
    """The routers of some dialects by name, or of all."""
    unknown = [name for name in names if name not in DIALECTS and name != "all"]
    if unknown:
        raise SourceError(f"no dialect {unknown[0]!r}; there are: all, {', '.join(DIALECTS)}")
    return [router for name, router in DIALECTS.items() if name in names or "all" in names]
