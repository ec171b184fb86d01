"""LLaMA-Factory: POST /v1/score/evaluation, as its PPO client and the users of its own API send it.

`reward_model_type: api`, `reward_model: http://HOST:PORT/v1/score/evaluation`. Its client always says
"model": "model".
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import SparseRMError
from app.serve.adapters.common import Heard, listen, new_id, speaking, understood
from app.serve.api.error_handlers import printable


class Evaluation(BaseModel):
    """Rendered conversations, each one string."""

    model: str | None = None
    messages: Annotated[list[str], Field(min_length=1)]


class Scores(BaseModel):
    """What its client reads is `scores`."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def read(body: Evaluation) -> list[tuple[str, str | None]]:
    """Each text; where its response begins, nobody says."""
    return [(text, None) for text in body.messages]


def write(heard: Heard) -> dict[str, Any]:
    """Flat, in order."""
    return {
        "id": new_id("scoreval"), "object": "score.evaluation", "model": heard.model, "scores": heard.rewards
    }  # fmt: skip


def failed(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """FastAPI's own shape; what cannot be read is 400 there."""
    return 400 if error.status == 422 else error.status, {"detail": printable(error.message)}


router = APIRouter(route_class=speaking(failed), tags=["LLaMA-Factory"])


@router.post("/v1/score/evaluation", response_model=Scores, operation_id="llamafactory_score")
async def evaluation(body: Evaluation, request: Request) -> Response:
    """Scores for LLaMA-Factory; a model name that is not served means the default one."""
    heard = await listen(request, understood(request, read(body)), body.model, lenient=True)
    return JSONResponse(write(heard))
