"""Between a request and the scorer, for every dialect: which model is meant, and does anybody still wait."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request

from app.serve.scoring import Scorer

T = TypeVar("T")
PATH_MODEL = "sparserm.model"


def scorer(request: Request) -> Scorer:
    """What scores for this server."""
    found: Scorer = request.app.state.scorer
    return found


TheScorer = Annotated[Scorer, Depends(scorer)]
Caller = Annotated[
    str,
    Header(
        alias="X-SparseRM-Caller", pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Who asks, for watching drift by caller.",
    ),
]  # fmt: skip


def meant(request: Request, named: str | None, *, lenient: bool = False) -> str:
    """The model a request is about: by its body, else by its path, else the default.

    A name that is not served is an error, unless the path names a model or the dialect sends any name.
    """
    by_path = request.scope.get(PATH_MODEL)
    if named and (named in scorer(request).engine.names or not (by_path or lenient)):
        return named
    return by_path or str(request.app.state.default_model)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or drop it as soon as nobody waits for the answer."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        gone.cancel()
        task.cancel()
