"""One file a dialect: what it sends → exchanges; rewards → what it reads; a route."""

from fastapi import APIRouter

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


def spoken(names: tuple[str, ...]) -> list[APIRouter]:
    """The routers of some dialects by name, or of all."""
    unknown = [name for name in names if name not in DIALECTS and name != "all"]
    if unknown:
        raise SourceError(f"no dialect {unknown[0]!r}; there are: all, {', '.join(DIALECTS)}")
    return [router for name, router in DIALECTS.items() if name in names or "all" in names]
