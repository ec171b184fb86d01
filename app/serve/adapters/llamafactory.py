"""LLaMA-Factory's POST /v1/score/evaluation, for its PPO trainer and for users of its own API.

Configure `reward_model_type: api`, `reward_model: http://HOST:PORT/v1/score/evaluation`. The trainer always
sends "model": "model".
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import SparseRMError
from app.serve.adapters.common import (
    AdapterResult,
    make_adapter_route_class,
    new_id,
    parse_texts,
    score_items,
)
from app.serve.api.error_handlers import truncate_message
from app.serve.api.serialization import build_body
from app.types import Item


class LlamaFactoryRequest(BaseModel):
    """Request with templated conversations, each one string."""

    model: str | None = None
    messages: Annotated[list[str], Field(min_length=1)]


class LlamaFactoryResponse(BaseModel):
    """Response; the trainer reads only `scores`."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def parse_request(request: Request, body: LlamaFactoryRequest) -> list[Item]:
    """Return the items of templated texts whose prompts are unknown."""
    return parse_texts(request, body.messages)


def build_response(_: LlamaFactoryRequest, result: AdapterResult) -> dict[str, Any]:
    """Return the rewards in the request's order."""
    return build_body(LlamaFactoryResponse, id=new_id("scoreval"), model=result.model, scores=result.rewards)


def build_error(error: SparseRMError, _: Any) -> tuple[int, Any]:
    """Return an error in FastAPI's format; LLaMA-Factory's server answers invalid input with 400."""
    return 400 if error.status == 422 else error.status, {"detail": truncate_message(error.message)}


router = APIRouter(route_class=make_adapter_route_class(build_error), tags=["LLaMA-Factory"])


@router.post("/v1/score/evaluation", response_model=LlamaFactoryResponse, operation_id="llamafactory_score")
async def score_evaluation(body: LlamaFactoryRequest, request: Request) -> Response:
    """Return rewards for LLaMA-Factory; an unknown model name stands for the default model."""
    items = parse_request(request, body)
    result = await score_items(request, items, body.model, allow_unknown_model=True)
    return JSONResponse(build_response(body, result))
