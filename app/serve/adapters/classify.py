"""POST /classify of three servers: vLLM (`input`, `messages`), SGLang (`text`) and infinity (`raw_scores`).

The fields of the body show which server's API the client uses. Scores go through a sigmoid where that server
does it by default: for vLLM unless `use_activation` (or `activation`) is false, for infinity unless
`raw_scores` is true. SGLang's scores are raw.
"""

from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import (
    AdapterResult,
    build_list,
    make_adapter_route_class,
    new_id,
    parse_texts,
    score_items,
    sigmoid,
    split_conversation,
)
from app.serve.api.error_handlers import build_vllm_error
from app.serve.api.request_schemas import MessageInput
from app.types import Item

LABEL = "LABEL_0"
OneOrMoreTexts = str | Annotated[list[str], Field(min_length=1)]


class ClassifyRequest(BaseModel):
    """Request of any of the three: vLLM `input` or `messages`, SGLang `text`, infinity also `raw_scores`."""

    model: str | None = None
    input: OneOrMoreTexts | None = None
    messages: Annotated[list[MessageInput], Field(min_length=2)] | None = None
    text: OneOrMoreTexts | None = None
    raw_scores: bool | None = None
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(request: Request, body: ClassifyRequest) -> list[Item]:
    """Return the items of templated texts, or the one item of a conversation."""
    if body.messages is not None:
        return [split_conversation(body.messages)]
    texts = body.text if body.text is not None else body.input
    if texts is None:
        raise InvalidInput("give input, messages or text", "input", "missing")
    return parse_texts(request, [texts] if isinstance(texts, str) else texts)


def build_response(body: ClassifyRequest, result: AdapterResult) -> Any:
    """Return the response of the server that the request's fields belong to."""
    if body.text is not None:
        return _build_sglang_response(result, single=isinstance(body.text, str))
    if body.raw_scores is not None:
        return _build_infinity_response(result, raw=body.raw_scores)
    use_activation = body.use_activation if body.use_activation is not None else body.activation
    return _build_vllm_response(result, raw=use_activation is False)


def _build_vllm_response(result: AdapterResult, *, raw: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {"index": index, "label": LABEL, "probs": [_scale(reward, raw=raw)], "num_classes": 1}
        for index, reward in enumerate(result.rewards)
    ]
    return build_list(result, "classify", rows)


def _build_sglang_response(result: AdapterResult, *, single: bool) -> Any:
    rows = [
        {
            "embedding": [reward],
            "meta_info": {"id": new_id("classify"), "prompt_tokens": len(item.encoded.ids)},
        }
        for reward, item in zip(result.rewards, result.items, strict=True)
    ]
    return rows[0] if single else rows


def _build_infinity_response(result: AdapterResult, *, raw: bool) -> dict[str, Any]:
    return {
        "object": "classify",
        "data": [[{"score": _scale(reward, raw=raw), "label": LABEL}] for reward in result.rewards],
        "model": result.model,
        "usage": result.usage,
        "id": new_id("infinity"),
        "created": int(time()),
    }


def _scale(reward: float, *, raw: bool) -> float:
    return reward if raw else sigmoid(reward)


router = APIRouter(route_class=make_adapter_route_class(build_vllm_error), tags=["vLLM, SGLang, infinity"])


@router.post("/classify", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="classify")
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Return rewards as class scores, for clients of vLLM, SGLang and infinity."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))
