"""vLLM's POST /pooling: each reward is a vector of one number, raw unless `use_activation` is true."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import (
    AdapterResult,
    build_list,
    make_adapter_route_class,
    parse_texts,
    score_items,
    sigmoid,
    split_conversation,
)
from app.serve.api.error_handlers import build_vllm_error
from app.serve.api.request_schemas import MessageInput
from app.types import Item


class PoolingRequest(BaseModel):
    """Request with templated texts, with one conversation, or with several, as reward-hub sends them."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1)] | None = None
    messages: (
        Annotated[list[MessageInput], Field(min_length=2)]
        | Annotated[list[Annotated[list[MessageInput], Field(min_length=2)]], Field(min_length=1)]
        | None
    ) = None
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(request: Request, body: PoolingRequest) -> list[Item]:
    """Return the items of templated texts or of conversations."""
    if body.messages is not None:
        conversations = [messages for messages in body.messages if isinstance(messages, list)]
        single = [message for message in body.messages if isinstance(message, MessageInput)]
        return [split_conversation(messages) for messages in conversations or [single]]
    if body.input is None:
        raise InvalidInput("give input or messages", "input", "missing")
    return parse_texts(request, [body.input] if isinstance(body.input, str) else body.input)


def build_response(body: PoolingRequest, result: AdapterResult) -> dict[str, Any]:
    """Return vectors of one number."""
    use_activation = bool(body.use_activation or body.activation)
    rows: list[dict[str, Any]] = [
        {"index": index, "object": "pooling", "data": [sigmoid(reward) if use_activation else reward]}
        for index, reward in enumerate(result.rewards)
    ]
    return build_list(result, "pool", rows)


router = APIRouter(route_class=make_adapter_route_class(build_vllm_error), tags=["vLLM"])


@router.post("/pooling", response_model=dict[str, Any], operation_id="pooling")
async def pooling(body: PoolingRequest, request: Request) -> Response:
    """Return rewards as pooled outputs, for clients of vLLM."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))
