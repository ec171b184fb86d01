"""POST /score, /v1/score: prompts and responses, in vLLM's fields or SGLang's `query` and `items`.

Scores for vLLM go through a sigmoid unless `use_activation` (or `activation`) is false. SGLang's are raw.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import (
    AdapterResult,
    build_item,
    build_list,
    make_adapter_route_class,
    score_items,
    sigmoid,
)
from app.serve.api.error_handlers import build_vllm_error
from app.types import Item

OneOrMoreTexts = str | Annotated[list[str], Field(min_length=1)]
# The fields of prompts and responses in releases of vLLM.
FIELD_PAIRS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


class ScoreRequest(BaseModel):
    """Request with one prompt and one or more responses, or with equally many of both."""

    model: str | None = None
    query: str | None = None
    queries: OneOrMoreTexts | None = None
    documents: OneOrMoreTexts | None = None
    items: OneOrMoreTexts | None = None
    text_1: OneOrMoreTexts | None = None
    text_2: OneOrMoreTexts | None = None
    data_1: OneOrMoreTexts | None = None
    data_2: OneOrMoreTexts | None = None
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(_: Request, body: ScoreRequest) -> list[Item]:
    """Return an item per prompt and response; a single prompt belongs to every response."""
    prompts, responses, prompts_field = _read_texts(body)
    if len(prompts) not in (1, len(responses)):
        message = f"{len(prompts)} prompts and {len(responses)} responses; give one prompt, or as many"
        raise InvalidInput(message, prompts_field, "lengths")
    all_prompts = prompts * len(responses) if len(prompts) == 1 else prompts
    return [build_item(*pair) for pair in zip(all_prompts, responses, strict=True)]


def build_response(body: ScoreRequest, result: AdapterResult) -> dict[str, Any]:
    """Return the scores in the request's order."""
    if _is_sglang(body):
        scores = [[reward] for reward in result.rewards]
        return {"scores": scores, "model": result.model, "usage": result.usage, "object": "scoring"}
    use_activation = body.use_activation if body.use_activation is not None else body.activation
    rows = [
        {"index": index, "object": "score", "score": reward if use_activation is False else sigmoid(reward)}
        for index, reward in enumerate(result.rewards)
    ]
    return build_list(result, "score", rows)


def _is_sglang(body: ScoreRequest) -> bool:
    return body.query is not None and body.items is not None


def _read_texts(body: ScoreRequest) -> tuple[list[str], list[str], str]:
    """Return the prompts, the responses, and the name of the field with the prompts."""
    if body.query is not None and body.items is not None:
        return [body.query], _as_list(body.items), "query"
    values: dict[str, Any] = body.model_dump()
    for prompts_field, responses_field in FIELD_PAIRS:
        if values[prompts_field] is not None and values[responses_field] is not None:
            return _as_list(values[prompts_field]), _as_list(values[responses_field]), prompts_field
    raise InvalidInput("give queries and documents, text_1 and text_2, or query and items", "body", "missing")


def _as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


router = APIRouter(route_class=make_adapter_route_class(build_vllm_error), tags=["vLLM, SGLang"])


@router.post("/score", response_model=dict[str, Any], operation_id="score")
@router.post("/v1/score", response_model=dict[str, Any], operation_id="v1_score")
async def score(body: ScoreRequest, request: Request) -> Response:
    """Return rewards of responses to prompts, for clients of vLLM and SGLang."""
    result = await score_items(request, parse_request(request, body), body.model)
    return JSONResponse(build_response(body, result))
