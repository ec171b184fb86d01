"""vLLM's POST /pooling: each reward as a vector of one, raw unless `use_activation` asks for a sigmoid."""

from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import (
    AdapterResult,
    adapter_route_class,
    score_items,
    new_id,
    parse_texts,
    sigmoid,
    split_conversation,
)
from app.serve.api.error_handlers import vllm_error
from app.serve.api.request_schemas import MessageInput
from app.types import Item


class PoolingRequest(BaseModel):
    """Rendered texts, or one conversation, or (as reward-hub sends them) several."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1)] | None = None
    messages: (
        Annotated[list[MessageInput], Field(min_length=2)]
        | Annotated[list[Annotated[list[MessageInput], Field(min_length=2)]], Field(min_length=1)]
        | None
    ) = None
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(body: PoolingRequest) -> list[str] | list[Item]:
    """Rendered texts, or conversations."""
    if body.messages is not None:
        several = [one for one in body.messages if isinstance(one, list)]
        single = [one for one in body.messages if isinstance(one, MessageInput)]
        return [split_conversation(one) for one in several or [single]]
    if body.input is None:
        raise InvalidInput("give input or messages", "input", "missing")
    return [body.input] if isinstance(body.input, str) else body.input


def build_response(body: PoolingRequest, heard: AdapterResult) -> dict[str, Any]:
    """A vector of one number each."""
    even = bool(body.use_activation or body.activation)
    data = [
        {"index": i, "object": "pooling", "data": [sigmoid(reward) if even else reward]}
        for i, reward in enumerate(heard.rewards)
    ]
    return {
        "id": new_id("pool"), "object": "list", "created": int(time()), "model": heard.model,
        "data": data, "usage": heard.usage,
    }  # fmt: skip


router = APIRouter(route_class=adapter_route_class(vllm_error), tags=["vLLM"])


@router.post("/pooling", response_model=dict[str, Any], operation_id="pooling")
async def pooling(body: PoolingRequest, request: Request) -> Response:
    """Rewards as pooled outputs, for clients of vLLM."""
    found = parse_request(body)
    texts = [one for one in found if isinstance(one, str)]
    exchanges = [one for one in found if isinstance(one, Item)]
    exchanges += parse_texts(request, [(one, None) for one in texts])
    return JSONResponse(build_response(body, await score_items(request, exchanges, body.model)))
