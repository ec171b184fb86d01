"""vLLM's POST /pooling: each reward as a vector of one, raw unless `use_activation` asks for a sigmoid."""

from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import (
    Heard,
    conversation,
    listen,
    new_id,
    sigmoid,
    speaking,
    understood,
)
from app.serve.api.error_handlers import as_vllm
from app.serve.api.request_schemas import Turn
from app.types import Item


class Pooling(BaseModel):
    """Rendered texts, or one conversation, or (as reward-hub sends them) several."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1)] | None = None
    messages: (
        Annotated[list[Turn], Field(min_length=2)]
        | Annotated[list[Annotated[list[Turn], Field(min_length=2)]], Field(min_length=1)]
        | None
    ) = None
    use_activation: bool | None = None
    activation: bool | None = None


def read(body: Pooling) -> list[str] | list[Item]:
    """Rendered texts, or conversations."""
    if body.messages is not None:
        several = [one for one in body.messages if isinstance(one, list)]
        single = [one for one in body.messages if isinstance(one, Turn)]
        return [conversation(one) for one in several or [single]]
    if body.input is None:
        raise InvalidInput("give input or messages", "input", "missing")
    return [body.input] if isinstance(body.input, str) else body.input


def write(body: Pooling, heard: Heard) -> dict[str, Any]:
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


router = APIRouter(route_class=speaking(as_vllm), tags=["vLLM"])


@router.post("/pooling", response_model=dict[str, Any], operation_id="pooling")
async def pooling(body: Pooling, request: Request) -> Response:
    """Rewards as pooled outputs, for clients of vLLM."""
    found = read(body)
    texts = [one for one in found if isinstance(one, str)]
    exchanges = [one for one in found if isinstance(one, Item)]
    exchanges += understood(request, [(one, None) for one in texts])
    return JSONResponse(write(body, await listen(request, exchanges, body.model)))
