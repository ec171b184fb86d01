"""POST /rerank, /v1/rerank, /v2/rerank: responses to one prompt, best first, for clients that rerank.

`documents` is the shape of vLLM, Cohere, Jina and infinity, `texts` that of TEI. Scores go through a sigmoid,
as everywhere, unless `raw_scores` is true or `use_activation` false: the order is the same.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import InvalidInput, SparseRMError
from app.serve.adapters.common import AdapterResult, adapter_route_class, build_item, score_items, new_id, sigmoid
from app.serve.api.error_handlers import tei_error, vllm_error


class Document(BaseModel):
    """A response with its text in a field."""

    text: str


class Rerank(BaseModel):
    """A prompt and the responses to it."""

    model: str | None = None
    query: str
    documents: Annotated[list[str | Document], Field(min_length=1)] | None = None
    texts: Annotated[list[str], Field(min_length=1)] | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True
    return_text: bool = False
    raw_scores: bool = False
    use_activation: bool | None = None
    activation: bool | None = None


def parse_request(body: Rerank) -> list[str]:
    """The responses."""
    if body.texts is not None:
        return body.texts
    if body.documents is None:
        raise InvalidInput("give documents (or texts, as TEI has it)", "documents", "missing")
    return [one if isinstance(one, str) else one.text for one in body.documents]


def build_response(body: Rerank, heard: AdapterResult) -> Any:
    """Best first, each with its place in the request."""
    raw = body.raw_scores or False in (body.use_activation, body.activation)
    scores = [reward if raw else sigmoid(reward) for reward in heard.rewards]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    texts = parse_request(body)
    if body.texts is not None:
        shown: list[dict[str, Any]] = [{"text": texts[i]} if body.return_text else {} for i in order]
        return [{"index": i, **one, "score": scores[i]} for i, one in zip(order, shown, strict=True)]
    results = [
        {"index": i, "relevance_score": scores[i]}
        | ({"document": {"text": texts[i]}} if body.return_documents else {})
        for i in order[: body.top_n or len(order)]
    ]
    return {
        "id": new_id("rerank"), "object": "rerank", "model": heard.model, "results": results,
        "usage": heard.usage, "meta": {"billed_units": {"search_units": 1}},
    }  # fmt: skip


def failed(error: SparseRMError, body: Any) -> tuple[int, Any]:
    """As TEI says it to those who ask like TEI's clients, else as vLLM does."""
    return tei_error(error) if isinstance(body, dict) and "texts" in body else vllm_error(error)


router = APIRouter(route_class=adapter_route_class(failed), tags=["vLLM, Cohere, Jina, infinity, TEI"])


@router.post("/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="rerank")
@router.post("/v1/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="v1_rerank")
@router.post("/v2/rerank", response_model=dict[str, Any] | list[dict[str, Any]], operation_id="v2_rerank")
async def rerank(body: Rerank, request: Request) -> Response:
    """Responses to a prompt, best first."""
    exchanges = [build_item(body.query, text) for text in parse_request(body)]
    return JSONResponse(build_response(body, await score_items(request, exchanges, body.model)))
