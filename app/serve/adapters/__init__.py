"""Adapters for the reward APIs of trainers and other inference servers, one file per dialect.

Each file parses the dialect's request into items, builds its response from the scores, and has a router.
"""

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
    400: "The request cannot be read.", 401: "The API key is missing or unknown.",
    403: "The API key does not allow this.", 404: "There is no such model.",
    408: "The request was sent too slowly.", 413: "The request is too large.",
    422: "The input cannot be scored.", 424: "The backend failed.", 429: "The server is overloaded.",
    500: "The server failed.", 503: "The server is starting or shutting down.",
}  # fmt: skip
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, text in ERROR_DESCRIPTIONS.items()
}


def add_dialects(app: FastAPI, names: tuple[str, ...] = ("all",)) -> None:
    """Add the routes of the named dialects to an app; `all` adds every dialect."""
    for router in select_routers(names):
        app.include_router(router, responses=ERROR_RESPONSES, dependencies=[RequestContextDependency])


def select_routers(names: tuple[str, ...]) -> list[APIRouter]:
    """Return the routers of the named dialects; `all` stands for every dialect."""
    unknown = [name for name in names if name not in DIALECTS and name != "all"]
    if unknown:
        raise SourceError(f"no dialect {unknown[0]!r}; there are: all, {', '.join(DIALECTS)}")
    return [router for name, router in DIALECTS.items() if name in names or "all" in names]
