"""LLaMA-Factory: POST /v1/score/evaluation, as its PPO client and the users of its own API send it.

`reward_model_type: api`, `reward_model: http://HOST:PORT/v1/score/evaluation`. Its client always says
"model": "model".
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import SparseRMError
from app.serve.adapters.common import AdapterResult, adapter_route_class, score_items, new_id, parse_texts
from app.serve.api.error_handlers import truncate_message


class LlamaFactoryRequest(BaseModel):
    """Rendered conversations, each one string."""

    model: str | None = None
    messages: Annotated[list[str], Field(min_length=1)]


class LlamaFactoryResponse(BaseModel):
    """What its client reads is `scores`."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def parse_request(body: LlamaFactoryRequest) -> list[tuple[str, str | None]]:
    """Each text; where its response begins, nobody says."""
    return [(text, None) for text in body.messages]


def build_response(heard: AdapterResult) -> dict[str, Any]:
    """Flat, in order."""
    return {
        "id": new_id("scoreval"), "object": "score.evaluation", "model": heard.model, "scores": heard.rewards
    }  # fmt: skip


def error_response(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """FastAPI's own shape; what cannot be read is 400 there."""
    return 400 if error.status == 422 else error.status, {"detail": truncate_message(error.message)}


router = APIRouter(route_class=adapter_route_class(error_response), tags=["LLaMA-Factory"])


@router.post("/v1/score/evaluation", response_model=LlamaFactoryResponse, operation_id="llamafactory_score")
async def evaluation(body: LlamaFactoryRequest, request: Request) -> Response:
    """Scores for LLaMA-Factory; a model name that is not served means the default one."""
    heard = await score_items(
        request, parse_texts(request, parse_request(body)), body.model, allow_unknown_model=True
    )
    return JSONResponse(build_response(heard))
