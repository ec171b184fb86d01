"""POST /score, /v1/score: prompts against responses, in vLLM's spellings or SGLang's `query` and `items`.

vLLM puts a sigmoid over one score unless `use_activation` (or `activation`) is false. SGLang's are raw.
"""

from time import time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput
from app.serve.adapters.common import AdapterResult, adapter_route_class, build_item, score_items, new_id, sigmoid
from app.serve.api.error_handlers import vllm_error
from app.types import Item

Texts = str | Annotated[list[str], Field(min_length=1)]
SPELLINGS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


class ScoreBody(BaseModel):
    """One prompt and one response, one and many, or as many of each."""

    model: str | None = None
    query: str | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: bool | None = None
    activation: bool | None = None


class Asked(NamedTuple):
    """Conversations, and whether SGLang's shape is wanted."""

    exchanges: list[Item]
    sglang: bool


def parse_request(body: ScoreBody) -> Asked:
    """Prompts and responses side by side."""
    if body.query is not None and body.items is not None:
        return Asked([build_item(body.query, one) for one in _listed(body.items)], sglang=True)
    given: dict[str, Any] = body.model_dump()
    for first, second in SPELLINGS:
        if given[first] is not None and given[second] is not None:
            prompts, responses = _listed(given[first]), _listed(given[second])
            if len(prompts) not in (1, len(responses)):
                message = (
                    f"{len(prompts)} prompts and {len(responses)} responses; give one prompt, or as many"
                )
                raise InvalidInput(message, first, "lengths")
            wide = prompts * len(responses) if len(prompts) == 1 else prompts
            return Asked([build_item(*pair) for pair in zip(wide, responses, strict=True)], sglang=False)
    raise InvalidInput("give queries and documents, text_1 and text_2, or query and items", "body", "missing")


def build_response(body: ScoreBody, heard: AdapterResult, *, sglang: bool) -> dict[str, Any]:
    """Scores in order."""
    if sglang:
        scores = [[reward] for reward in heard.rewards]
        return {"scores": scores, "model": heard.model, "usage": heard.usage, "object": "scoring"}
    wanted = body.use_activation if body.use_activation is not None else body.activation
    data = [
        {"index": i, "object": "score", "score": reward if wanted is False else sigmoid(reward)}
        for i, reward in enumerate(heard.rewards)
    ]
    return {
        "id": new_id("score"), "object": "list", "created": int(time()), "model": heard.model,
        "data": data, "usage": heard.usage,
    }  # fmt: skip


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


router = APIRouter(route_class=adapter_route_class(vllm_error), tags=["vLLM, SGLang"])


@router.post("/score", response_model=dict[str, Any], operation_id="score")
@router.post("/v1/score", response_model=dict[str, Any], operation_id="v1_score")
async def score(body: ScoreBody, request: Request) -> Response:
    """Rewards of responses to prompts, for clients of vLLM and SGLang."""
    asked = parse_request(body)
    heard = await score_items(request, asked.exchanges, body.model)
    return JSONResponse(build_response(body, heard, sglang=asked.sglang))
