"""POST /classify, as three have it: vLLM (`input`, `messages`), SGLang (`text`), infinity (`raw_scores`).

The body tells which. Scores go through a sigmoid where the server would do that by default: for vLLM unless
`use_activation` (or `activation`) is false, for infinity unless `raw_scores` is true. SGLang's are raw.
"""

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

LABEL = "LABEL_0"
OneOrMoreTexts = str | Annotated[list[str], Field(min_length=1)]


class ClassifyRequest(BaseModel):
    """Any of the three; vLLM's has `input` or `messages`, SGLang's `text`, infinity's also `raw_scores`."""

    model: str | None = None
    input: OneOrMoreTexts | None = None
    messages: Annotated[list[MessageInput], Field(min_length=2)] | None = None
    text: OneOrMoreTexts | None = None
    raw_scores: bool | None = None
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(body: ClassifyRequest) -> list[str] | Item:
    """Rendered texts, or one conversation."""
    if body.messages is not None:
        return split_conversation(body.messages)
    texts = body.text if body.text is not None else body.input
    if texts is None:
        raise InvalidInput("give input, messages or text", "input", "missing")
    return [texts] if isinstance(texts, str) else texts


def build_response(body: ClassifyRequest, heard: AdapterResult) -> Any:
    """The shape of the server the body was written for."""
    if body.text is not None:
        return _sglang(heard, alone=isinstance(body.text, str))
    if body.raw_scores is not None:
        return _infinity(heard, raw=body.raw_scores)
    wanted = body.use_activation if body.use_activation is not None else body.activation
    return _vllm(heard, raw=wanted is False)


def _vllm(heard: AdapterResult, *, raw: bool) -> dict[str, Any]:
    data = [
        {"index": i, "label": LABEL, "probs": [_scale(reward, raw=raw)], "num_classes": 1}
        for i, reward in enumerate(heard.rewards)
    ]
    return {
        "id": new_id("classify"), "object": "list", "created": int(time()), "model": heard.model,
        "data": data, "usage": heard.usage,
    }  # fmt: skip


def _sglang(heard: AdapterResult, *, alone: bool) -> Any:
    rows = [
        {"embedding": [reward], "meta_info": {"id": new_id("classify"), "prompt_tokens": len(one.ids)}}
        for reward, one in zip(heard.rewards, heard.encoded, strict=True)
    ]
    return rows[0] if alone else rows


def _infinity(heard: AdapterResult, *, raw: bool) -> dict[str, Any]:
    return {
        "object": "classify",
        "data": [[{"score": _scale(reward, raw=raw), "label": LABEL}] for reward in heard.rewards],
        "model": heard.model,
        "usage": heard.usage,
        "id": new_id("infinity"),
        "created": int(time()),
    }


def _scale(reward: float, *, raw: bool) -> float:
    return reward if raw else sigmoid(reward)


router = APIRouter(route_class=adapter_route_class(vllm_error), tags=["vLLM, SGLang, infinity"])


@router.post("/classify", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="classify")
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Rewards as class scores, for clients of vLLM, SGLang and infinity."""
    found = parse_request(body)
    exchanges = [found] if isinstance(found, Item) else parse_texts(request, [(one, None) for one in found])
    return JSONResponse(build_response(body, await score_items(request, exchanges, body.model)))
